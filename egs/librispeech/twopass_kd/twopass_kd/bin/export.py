"""Export one system for devices: ONNX (float32 and int8), TorchScript and safetensors, each checked before it is kept.

Reads the final checkpoint of the system and its decode.json of stage 8; chooses the int8 layers on the dev sets. Leaves
<exp-dir>/<conf>/export/<system>/ whole or, where a check fails, as it was.
"""

import argparse
import hashlib
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from lhotse import CutSet

from twopass_kd.config.cli import exit_status, experiment_parser
from twopass_kd.config.environment import log_environment, setup_logging
from twopass_kd.config.fingerprint import short_hash
from twopass_kd.config.load import experiment_folder, load_config
from twopass_kd.config.schema import Config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.export.onnx_files import check_finite, chunk_metadata, export_onnx
from twopass_kd.export.quantization import quantize
from twopass_kd.export.scan import DevDecoder, choose_layers, log_choice
from twopass_kd.export.streaming import MAX_SECONDS, check_streaming, load_utterances
from twopass_kd.export.torchscript import export_torchscript
from twopass_kd.export.weights import export_weights
from twopass_kd.files.decode_json import CheckpointDecoding
from twopass_kd.files.export_json import ExportJson, ExportSettings
from twopass_kd.files.json_model import read_json, write_json
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.ondevice.runtime import OnnxRuntime
from twopass_kd.teachers.load_system import load_system


def export(cfg: Config, system: str, data_dir: Path, exp_dir: Path, reuse: bool = False) -> Path:
    """Export the final checkpoint of `system`; returns the folder.

    Args:
      reuse: leave a finished export of the same model, data and settings as it is.
    Raises:
      ConfigError: if the system does not exist or cannot be exported.
      FileNotFoundError: naming the stage that makes what is missing.
      ExportError: if a file does not do what the model does; the folder is as it was before.
    """
    _, model, content, tokenizer = load_system(cfg, system, data_dir, exp_dir)
    decoded = _read_decode_json(
        experiment_folder(cfg, exp_dir) / "decode" / system / "decode.json", content["identity"]
    )
    settings = ExportSettings(**decoded.decoding().model_dump(), chunk_size=cfg.export.chunk_size)
    data = AsrDataModule(cfg, data_dir, tokenizer, model.encoder.subsampling_factor)
    cuts = {part: data.cuts([part]) for part in dict.fromkeys([*cfg.corpus.test_parts, *cfg.corpus.dev_parts])}
    key = short_hash(
        [content["weights_digest"], tokenizer.digest(), settings.model_dump(), cfg.seed]
        + [(part, [cut.id for cut in cut_set]) for part, cut_set in cuts.items()]
    )

    final = experiment_folder(cfg, exp_dir) / "export" / system
    if reuse and _is_finished(final, key):
        logging.info("%s is exported already", final)
        return final
    partial = final.with_name(f".{system}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        summary = {"system": system, "phase": content["phase"], "identity": content["identity"], "key": key}
        summary.update(weights_digest=content["weights_digest"], settings=settings)
        summary.update(_fill(partial, cfg, model, content, settings, tokenizer, cuts))
        write_json(partial / "export.json", ExportJson(**summary))
        _replace(final, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logging.info("exported to %s", final)
    return final


def _is_finished(folder: Path, key: str) -> bool:
    """Whether `folder` holds all files of the export that `key` stands for."""
    try:
        summary = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in summary["files"]}
        return summary["key"] == key and summary["files"] == sizes
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _replace(final: Path, partial: Path) -> None:
    """Rename `partial` to `final`; the folder there before comes back if that fails."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    try:
        partial.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _read_decode_json(path: Path, identity: str) -> CheckpointDecoding:
    """What stage 8 chose for the checkpoint of that identity."""
    remedy = "stage 8 makes it: ./run.sh --stage 8 --stop-stage 8"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    decoded = read_json(path, CheckpointDecoding, remedy)
    if decoded.identity != identity:
        raise ValueError(
            f"{path} (identity {decoded.identity}) must be of the trained model (identity {identity}); {remedy}"
        )
    return decoded


def _fill(
    folder: Path,
    cfg: Config,
    model: TwoPassModel,
    content: dict[str, Any],
    settings: ExportSettings,
    tokenizer: Tokenizer,
    cuts: dict[str, CutSet],
) -> dict[str, Any]:
    """Write and check all files of an export; returns what export.json says of them."""
    tokens = "".join(f"{piece} {i}\n" for i, piece in enumerate(tokenizer.pieces)).encode()
    (folder / "tokens.txt").write_bytes(tokens)
    second_pass = settings.rescore_weight is not None
    common = {
        "export_id": short_hash([content["weights_digest"], settings.model_dump()]),
        "precision": "float32",
        "tokens_sha256": hashlib.sha256(tokens).hexdigest(),
    }
    search = {key: str(getattr(settings, key)) for key in ("beam", "nbest")}
    encoder = chunk_metadata(model, settings.chunk_size, cfg.features.sampling_rate)
    rescoring = {key: str(getattr(settings, key)) for key in ("rescore_weight", "length_reward")}
    metadata = {
        "encoder": {**encoder, **search, "second_pass": str(int(second_pass)), **common},
        "decoder": common,
        "joiner": common,
        "attention_decoder": {**rescoring, **common},
    }
    checks: dict[str, float] = export_onnx(model, second_pass, folder, metadata)
    checks["cpu_jit.pt"] = export_torchscript(model, folder / "cpu_jit.pt")
    export_weights(model, content, folder)
    checks["weights.safetensors"] = 0.0
    runtime = OnnxRuntime(folder)
    logging.info("largest differences from the PyTorch model: %s", {k: float(f"{v:.2g}") for k, v in checks.items()})

    streaming = {}
    for part in cfg.corpus.test_parts:
        some = load_utterances(cuts[part], runtime.info, min(MAX_SECONDS, cfg.export.decoded_seconds))
        streaming[part] = check_streaming(model, runtime, some)
        logging.info("%s, streaming against offline: %s", part, streaming[part])
    dev = [u for part in cfg.corpus.dev_parts for u in load_utterances(cuts[part], runtime.info)]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".int8.") as work:
        decoder = DevDecoder(folder, Path(work), dev)
        choice = choose_layers(decoder.layers, decoder, cfg.seed, cfg.corpus.dev_parts)
    log_choice(choice)
    for path in sorted(folder.glob("*.onnx")):
        int8_path = path.with_suffix(".int8.onnx")
        quantize(path, int8_path, set(choice.left_out))
        check_finite(model, int8_path)
    OnnxRuntime(folder, int8=True)  # reads all metadata back
    return {
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "checks": checks,
        "streaming": streaming,
        "int8": choice,
    }


def get_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, example="export.chunk_size=8")
    parser.add_argument("--system", required=True, help="a `report_as` name of the YAML, e.g. student")
    return parser


def main() -> int:
    args = get_parser().parse_args()
    setup_logging()
    log_environment()
    return exit_status(
        lambda: export(load_config(args.conf, args.overrides), args.system, args.data_dir, args.exp_dir, reuse=True)
    )


if __name__ == "__main__":
    sys.exit(main())
