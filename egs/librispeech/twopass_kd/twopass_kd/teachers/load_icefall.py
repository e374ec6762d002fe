"""Transducers trained by icefall: either TorchScript, as its `export.py --jit 1` writes it, or a recipe's own model
with its `pretrained.pt`. TorchScript runs code: load only files that you trust.
"""

import importlib.util
import logging
import shlex
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twopass_kd.config.schema import ConfigError
from twopass_kd.teachers.icefall_transducer import USED_PARTS, IcefallTransducer


def is_torchscript(path: Path) -> bool:
    """Whether a file is TorchScript: unlike a checkpoint, it carries code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def files_of(path: Path) -> list[Path]:
    """A teacher's files: of one whose parts were traced, the encoder's (`path`), the decoder's and the joiner's."""
    if not path.name.startswith("encoder_jit_trace"):
        return [path]
    return [path.with_name(path.name.replace("encoder", name, 1)) for name in USED_PARTS]


def load_torchscript(path: Path, num_mel_bins: int) -> IcefallTransducer:
    """A transducer that icefall's `export.py --jit 1` has written, streaming or not.

    Of a recipe that traces its parts (`--jit-trace 1`, the LSTM ones), `path` is `encoder_jit_trace*.pt`, with the
    others beside it.

    Raises:
      ConfigError: saying what the file has and what it should have.
    """
    logging.info("the teacher %s is TorchScript: its code runs here", path)
    module = _load_script(path).eval()
    if len(files_of(path)) > 1:
        module = _join_traced(module, path)
    missing = [name for name in USED_PARTS if not hasattr(module, name)]
    if missing:
        has = [name for name, _ in module.named_children()]
        raise ConfigError(
            f"`external_teacher.path` ({path}) must be a transducer with encoder, decoder and joiner, as icefall's "
            f"`export.py --jit 1` writes it, or encoder_jit_trace.pt; it has {', '.join(has) or 'no parts'}"
        )
    return IcefallTransducer(module, _encode_function(module.encoder), num_mel_bins)


def _load_script(path: Path) -> nn.Module:
    try:
        return torch.jit.load(str(path), map_location="cpu")
    except Exception as e:  # torch's errors have no common base
        reason = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise ConfigError(
            f"`external_teacher.path` ({path}) is TorchScript that torch {torch.__version__} cannot read ({reason}); "
            "export it with this torch or an older one, or train with a newer one (STACK=torch2)"
        ) from e


def _encode_function(encoder: nn.Module) -> Callable:
    """How an encoder of icefall takes whole utterances, with the chunks it was trained with where it streams."""
    if hasattr(encoder, "non_streaming_forward"):
        return lambda x, x_lens: encoder.non_streaming_forward(x, x_lens)[:2]
    if hasattr(encoder, "encoder_embed") and hasattr(encoder, "get_init_states"):
        return lambda x, x_lens: _encode_zipformer(encoder, x, x_lens)
    return lambda x, x_lens: encoder(x, x_lens)[:2]


def _encode_zipformer(encoder: nn.Module, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
    """A streaming zipformer's `forward` takes one chunk; its parts take all, attending as if chunk by chunk."""
    x, x_lens = encoder.encoder_embed(x, x_lens)
    padding = torch.arange(x.size(1), device=x.device) >= x_lens.unsqueeze(1)
    encoder_out, encoder_out_lens = encoder.encoder(x.transpose(0, 1), x_lens, padding)
    return encoder_out.transpose(0, 1), encoder_out_lens


def _join_traced(encoder: nn.Module, path: Path) -> nn.Module:
    """One module out of the files that `export.py --jit-trace 1` leaves: encoder (`path`), decoder, joiner."""
    module = nn.Module()
    module.encoder = _TracedLstm(encoder)
    for name, file in zip(("decoder", "joiner"), files_of(path)[1:]):
        if not file.is_file():
            raise ConfigError(f"`external_teacher.path` ({path}) must have {file.name} beside it, of the same export")
        part = _load_script(file)
        if name == "decoder" and not hasattr(getattr(part, "conv", None), "weight"):
            raise ConfigError(f"`external_teacher.path`: {file} must be a stateless decoder of icefall's, with a conv")
        module.add_module(name, _TracedDecoder(part) if name == "decoder" else part)
    return module.eval()


class _TracedLstm(nn.Module):
    """An LSTM encoder traced with its states, which begin at zero."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        states = self.encoder.get_init_states(x.size(0), x.device)
        return self.encoder(x, x_lens, states)[:2]


class _TracedDecoder(nn.Module):
    """A stateless decoder traced without padding; it is given blanks instead."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.context_size = decoder.conv.weight.shape[-1]

    def forward(self, y: Tensor) -> Tensor:
        return self.decoder(F.pad(y, (self.context_size - 1, 0)), torch.tensor([False]))


def load_recipe(recipe: Path, path: Path, options: str, vocab_size: int, num_mel_bins: int) -> IcefallTransducer:
    """The model that an icefall recipe's own code builds, with the weights of `path`.

    Args:
      recipe: folder of the recipe, e.g. `egs/librispeech/ASR/zipformer`; its `train.py` is imported.
      path: `pretrained.pt` of its export.py (`{"model": weights}`); read with `weights_only`.
      options: of its train.py, as on its command line, where the model was not trained with the defaults.
      vocab_size: of the student, blank included.
    Raises:
      ConfigError: if icefall or the recipe cannot be imported, or the weights do not fit.
    """
    if not (recipe / "train.py").is_file():
        raise ConfigError(f"`external_teacher.recipe` ({recipe}) must be an icefall recipe's folder, with a train.py")
    train = _import_train(recipe)
    absent = [name for name in ("get_params", "get_parser") if not hasattr(train, name)]
    if absent or not (hasattr(train, "get_model") or hasattr(train, "get_transducer_model")):
        raise ConfigError(
            f"`external_teacher.recipe` ({recipe}): its train.py must have get_params, get_parser and get_model or "
            "get_transducer_model, as icefall's transducers have"
        )
    params = train.get_params()
    try:
        params.update(vars(train.get_parser().parse_args(shlex.split(options))))
    except (SystemExit, ValueError) as e:
        raise ConfigError(f"`external_teacher.options` ({options}) must be options of {recipe}/train.py") from e
    for key in ("chunk_size", "left_context_frames"):
        if params.get("causal") and "," in str(params.get(key, "")):
            option = "--" + key.replace("_", "-")
            raise ConfigError(
                f"`external_teacher.options` must have one number for {option}, not {params[key]}, of which this model "
                f"takes another at each call; add e.g. {option} {dict(chunk_size=16, left_context_frames=128)[key]}"
            )
    params.update(vocab_size=vocab_size, blank_id=0, sos_id=1, eos_id=1, unk_id=2, feature_dim=num_mel_bins)
    params.update(dynamic_chunk_training=False)  # conformers': a random chunk at each call
    try:
        module = (train.get_model if hasattr(train, "get_model") else train.get_transducer_model)(params)
    except Exception as e:  # whatever the recipe's own code raises
        raise ConfigError(
            f"`external_teacher.options` ({options}): {recipe} cannot build a model with them ({e!r}); give those "
            "it was trained with"
        ) from e
    _load_weights(module, path, recipe, vocab_size)
    module.eval()
    encode = getattr(module, "forward_encoder", None) or _encode_function(module.encoder)
    return IcefallTransducer(module, encode, num_mel_bins)


def _import_train(recipe: Path) -> ModuleType:
    """A recipe's train.py, whose imports are of the modules beside it and of icefall."""
    spec = importlib.util.spec_from_file_location("icefall_recipe_train", recipe / "train.py")
    train = importlib.util.module_from_spec(spec)
    # It sets torch's threads when it is imported: ours stay, and torch aborts where they are in use already.
    setters = torch.set_num_threads, torch.set_num_interop_threads
    torch.set_num_threads = torch.set_num_interop_threads = lambda _: None
    sys.path.insert(0, str(recipe))
    try:
        spec.loader.exec_module(train)
    except Exception as e:  # an ImportError, or whatever the recipe's own code raises
        raise ConfigError(
            f"`external_teacher.recipe` ({recipe}): its train.py cannot be imported ({e!r}); set ICEFALL_ROOT to the "
            "icefall checkout and install what it needs (docs/install.md)"
        ) from e
    finally:
        sys.path.remove(str(recipe))
        torch.set_num_threads, torch.set_num_interop_threads = setters
    return train


def _load_weights(module: nn.Module, path: Path, recipe: Path, vocab_size: int) -> None:
    try:
        weights: dict[str, Tensor] = dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    except Exception as e:  # zipfile, pickle and torch errors have no common base
        raise ConfigError(
            f"`external_teacher.path` ({path}) must hold weights and nothing else, so that reading it runs no code "
            f"({type(e).__name__}); make it with {recipe}/export.py, which writes pretrained.pt"
        ) from e
    embedding = weights.get("decoder.embedding.weight")
    if embedding is not None and len(embedding) != vocab_size:
        raise ConfigError(
            f"`external_teacher.path` ({path}) has {len(embedding)} tokens, the student {vocab_size}; use the "
            "teacher's tokens.txt and bpe.model, and set `tokens.vocab_size`"
        )
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as e:
        reason = " ".join(str(e).split())[:400]
        raise ConfigError(
            f"`external_teacher.path` ({path}) does not fit the model that {recipe} builds with "
            f"`external_teacher.options`; give the options it was trained with: {reason}"
        ) from e
