"""What the JSON files of the stages must look like, in the terms of `user_files.find_problem`."""

PARTS = ("encoder", "decoder", "joiner", "attention_decoder", "total")

DIFFERENCE = {"delta_wer": float, "ci95": [float, float], "p": float}
# How stage 8 decoded a system; exports and runtimes take it over.
DECODING = {"beam": int, "nbest": int, "rescore_weight": (float, None), "length_reward": (float, None)}

_PERCENTILES = {"p50": float, "p95": float}
_PASSES = {"greedy_search": float, "first_pass": float, "two_pass": (float, None)}
_AGREEMENT = {"same": int, "of": int, "different": [str]}
_QUANTIZATION = {  # `int8` of a system's export.json
    "dev_parts": [str],
    "layers": int,
    "left_out": [str],
    "wer": {"fp32": float, "int8": float, "all_int8": float},
}
_STREAMING = {"utterances": int, "same_greedy": int, "different": [str], "encoder_difference": float}
ON_DEVICE = {
    "set": str,
    "timed_utterances": int,
    "timed_seconds": float,
    "threads": int,
    "chunk_ms": float,
    "decoded_seconds": {...: float},
    "rows": [
        {
            "system": str,
            "runtime": str,
            "identity": str,
            "bytes": int,
            "rtf": _PASSES,
            "chunk_ms": _PERCENTILES,
            "final_ms": (_PERCENTILES, None),
            "second_pass_share": (float, None),
            "peak_mb": float,
            "wer": {...: _PASSES},
        }
    ],
    "agreement": {...: {...: {...: _AGREEMENT}}},
    "int8": {...: {...: (float, None, {...: DIFFERENCE})}},
    "long_audio": {"minutes": [float], "peak_mb": [float]},
    "quantization": {...: _QUANTIZATION},
    "streaming": {...: {...: _STREAMING}},
    "settings": {...: DECODING},
}
# `export.json` of a system.
EXPORT = {
    "phase": str,
    "identity": str,
    "settings": {"chunk_size": int, **DECODING},
    "int8": _QUANTIZATION,
    "streaming": {...: _STREAMING},
}

# `decode.json` of a system; its further searches came later.
_SEARCHES = {
    ...: {
        "wer": {...: {"first_pass": float, "two_pass": (float, None)}},
        "rtf": {...: {...: (float, None)}},
        "lm_scale": (float, None),
    }
}
_SIZES = dict.fromkeys(PARTS, int)
DECODED = {
    "phase": str,
    "identity": str,
    "params": _SIZES,
    "bytes": _SIZES,
    "train_seconds": float,
    **DECODING,
    "weight_scan": [{"weight": float, "length_reward": float, "wer": float}],
    "rtf": {...: {...: (float, None)}},
    "searches?": _SEARCHES,
    "searches_left_out?": (str, None),
}

# `results.json`.
_SCORED = {"wer": float, "ci95": [float, float]}
_SYSTEM = {
    "name": str,
    **{key: value for key, value in DECODED.items() if key not in ("identity", "beam", "nbest")},
    "wer": {
        ...: {
            "greedy_search": _SCORED,
            "first_pass": _SCORED,
            "two_pass": (_SCORED, None),
            "ref_words": int,
            "num_utts": int,
        }
    },
}
RESULTS = {
    "conf": str,
    "corpus": {"kind": str, "synthetic": bool, "train_parts": [str], "dev_parts": [str], "test_parts": [str]},
    "seed": int,
    "bootstrap_samples": int,
    "environment": dict,
    "systems": [_SYSTEM],
    "not_decoded": [str],
    "compression": ({"params": float, "bytes": float}, None),
    "significance_pass?": str,
    "significance": {...: DIFFERENCE},
    "significance_baseline": {...: {...: DIFFERENCE}},
    "on_device?": (ON_DEVICE, None),
    "stages": [{"stage": int, "title": str, "seconds": float, "finished": str}],
}
