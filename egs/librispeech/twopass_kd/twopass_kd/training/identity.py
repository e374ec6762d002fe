"""Which training is which: by what a finished one is recognised, and an unfinished one is gone on with."""

from typing import Any

from twopass_kd.config.fingerprint import short_hash, training_settings
from twopass_kd.config.load import config_to_dict
from twopass_kd.config.schema import Config

_BOOKKEEPING = ("stage", "report_as", "cpu_ranks")  # keys of a phase that do not change what is learnt
# What may change while a training goes on, beside the phase's `base_lr`: who runs out of memory halfway, or meets
# losses that are not finite, does not have to start anew. Checkpoints tell from which step on.
CHANGEABLE = {
    "train": ("max_duration", "accum_grad", "precision", "clip_grad_scale", "clip_grad_norm"),
    "kd": ("teacher_precision",),
    "phase": ("base_lr",),
}


def identities(
    cfg: Config, phase: str, tokens_digest: str, data_digest: str, parents: dict[str, str]
) -> dict[str, str]:
    """`identity`, a hash of all that a phase's result depends on, and `resume_identity`, by which a run goes on.

    The latter leaves `CHANGEABLE` out.
    """
    full = config_to_dict(cfg)
    everything = {
        **training_settings(cfg),
        "kd": full["kd"] if any(term.endswith("_kd") for term in cfg.phases[phase].loss_scales) else None,
        "model": full["models"][full["phases"][phase]["model"]],
        "phase": {k: v for k, v in full["phases"][phase].items() if k not in _BOOKKEEPING},
        "tokens": tokens_digest,
        "data": data_digest,
        "parents": parents,
    }
    fixed = dict(everything)
    for section, names in CHANGEABLE.items():
        if fixed[section] is not None:
            fixed[section] = {key: value for key, value in fixed[section].items() if key not in names}
    return {"identity": short_hash(everything), "resume_identity": short_hash(fixed)}


def changed_settings(before: dict[str, Any], now: dict[str, Any], phase: str, step: int) -> list[dict[str, Any]]:
    """The `CHANGEABLE` settings that differ between two configs (as dicts), and that they do so from `step` on.

    Returns:
      For each `{"step": ..., "key": dotted key, "before": value, "now": value}`.
    """
    changes = []
    for section, names in CHANGEABLE.items():
        old, new = ((c["phases"][phase] if section == "phase" else c[section]) for c in (before, now))
        where = f"phases.{phase}" if section == "phase" else section
        changes += [
            {"step": step, "key": f"{where}.{name}", "before": old[name], "now": new[name]}
            for name in names
            if old[name] != new[name]
        ]
    return changes
