"""Transducers trained by icefall, under the names that this recipe's losses and searches use.

Either TorchScript, as icefall's `export.py --jit 1` writes it, or a recipe's own model with its `pretrained.pt`. Both
have a stateless decoder and a joiner that adds projections. TorchScript runs code: load only files that you trust.
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
from twopass_kd.models.decoder import State
from twopass_kd.models.two_pass import DEPLOYED_PARTS

_PROBE_FRAMES = (400, 800)  # lengths from which the frame rate is read off
_USED_PARTS = ("encoder", "decoder", "joiner")  # of recipes that have an attention decoder too
_KNOWN_BINS = (40, 64, 80, 96, 100, 128)


class IcefallTransducer(nn.Module):
    """A transducer of icefall with the interface of `TwoPassModel`'s first pass; for inference.

    Args:
      module: has `encoder`, `decoder` and `joiner` (and, where its recipe has them, `simple_am_proj` and
        `simple_lm_proj`), as icefall's models do; kept as `module`.
      encode: (x (N, T, num_features), x_lens (N,)) -> (encoder_out (N, T', C), its lengths (N,)).
      num_mel_bins: of the features that it is to be tried with.
    Raises:
      ConfigError: if the joiner or decoder is of another kind, or the encoder does not take such features.
    """

    def __init__(self, module: nn.Module, encode: Callable, num_mel_bins: int, blank_id: int = 0, unk_id: int = 2):
        super().__init__()
        self.module = module
        self.blank_id, self.unk_id = blank_id, unk_id
        self.encoder = _Encoder(encode, num_mel_bins)
        self.decoder = _Decoder(module.decoder, blank_id)
        self.joiner = _Joiner(module.joiner)
        for name in ("simple_am_proj", "simple_lm_proj"):
            if hasattr(module, name):
                self.add_module(name, getattr(module, name))
        self.vocab_size = self.joiner.output_linear.weight.shape[0]

    @property
    def trained_parts(self) -> list[str]:
        """The parts of a `TwoPassModel` that it can teach."""
        return ["encoder", "decoder", "joiner"] + (["simple_heads"] if hasattr(self, "simple_am_proj") else [])

    def deployed_parameters(self) -> dict[str, int]:
        """Number of parameters of each part as `TwoPassModel` has them, and `total`."""
        return self._sum_up(lambda p: p.numel())

    def deployed_bytes(self) -> dict[str, int]:
        """Bytes of the parameters of each part as `TwoPassModel` has them, and `total`."""
        return self._sum_up(lambda p: p.numel() * p.element_size())

    def _sum_up(self, size: Callable[[Tensor], int]) -> dict[str, int]:
        sums = dict.fromkeys(DEPLOYED_PARTS, 0)
        seen = set()  # the encoder's embedding has two names
        for name, parameter in self.module.named_parameters():
            part = name.split(".")[0]
            part = "encoder" if part == "encoder_embed" else part
            if part in _USED_PARTS and parameter.data_ptr() not in seen:
                seen.add(parameter.data_ptr())
                sums[part] += size(parameter)
        return {**sums, "total": sum(sums.values())}


class _Encoder(nn.Module):
    """`forward` as `Encoder` has it; the factor is measured, since no file says it."""

    def __init__(self, encode: Callable, num_mel_bins: int) -> None:
        super().__init__()
        self.encode = encode
        try:
            lens = [self._probe(frames, num_mel_bins) for frames in _PROBE_FRAMES]
        except Exception as e:  # whatever the teacher's own code raises
            takes = [bins for bins in _KNOWN_BINS if self._takes(bins)]
            if takes:
                raise ConfigError(
                    f"`features.num_mel_bins`: the teacher's encoder does not take the student's {num_mel_bins}, but "
                    f"{takes[0]}; they must be equal"
                ) from e
            raise ConfigError(
                f"the teacher's encoder cannot be run on features of shape (1, {_PROBE_FRAMES[0]}, {num_mel_bins}): "
                f"{(str(e).strip() or repr(e)).splitlines()[-1]}"
            ) from e
        # Output frames of so many more input frames.
        self.subsampling_factor = round((_PROBE_FRAMES[1] - _PROBE_FRAMES[0]) / max(1, lens[1] - lens[0]))

    def forward(self, x: Tensor, x_lens: Tensor, states: None = None) -> tuple[Tensor, Tensor, None]:
        with torch.jit.optimized_execution(False):  # or its first calls compile for up to a minute
            encoder_out, encoder_out_lens = self.encode(x, x_lens)
        return encoder_out, encoder_out_lens.to(torch.int64), None

    @torch.no_grad()
    def _probe(self, frames: int, num_mel_bins: int) -> int:
        """The length of the output for so many frames of features."""
        return int(self(torch.zeros(1, frames, num_mel_bins), torch.tensor([frames]))[1][0])

    def _takes(self, num_mel_bins: int) -> bool:
        try:
            return self._probe(_PROBE_FRAMES[0], num_mel_bins) > 0
        except Exception:
            return False


class _Decoder(nn.Module):
    """A stateless decoder, with `step` as ours has it."""

    def __init__(self, decoder: nn.Module, blank_id: int) -> None:
        super().__init__()
        self.decoder = decoder
        if not hasattr(decoder, "context_size"):
            raise ConfigError(
                "the teacher's decoder must be icefall's stateless one, which has a `context_size`; this one has not"
            )
        self.context_size = int(decoder.context_size)
        # What its recipe's searches put before the first token: -1 where the decoder knows it, for a zero vector.
        self.pad_id = -1
        try:
            decoder(torch.tensor([[self.pad_id]]))
        except (IndexError, RuntimeError):
            self.pad_id = blank_id

    def forward(self, y: Tensor) -> Tensor:
        """y: (N, U) int64 tokens, blank first. Returns (N, U, C)."""
        return self.decoder(y)

    def init_state(self, batch_size: int) -> State:
        """State before the first token, (N, context_size - 1) int64."""
        device = next(self.decoder.parameters()).device
        return (torch.full((batch_size, self.context_size - 1), self.pad_id, dtype=torch.int64, device=device),)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token (N,) int64 for each hypothesis: (N, C) and the new state."""
        context = torch.cat([state[0], tokens.unsqueeze(1)], dim=1)
        return self.decoder(context)[:, -1], (context[:, 1:],)


class _Joiner(nn.Module):
    """A joiner whose inputs broadcast, as ours: tanh of the sum of two projections, then Linear(V)."""

    def __init__(self, joiner: nn.Module) -> None:
        super().__init__()
        names = ("encoder_proj", "decoder_proj", "output_linear")
        missing = [name for name in names if not hasattr(joiner, name)]
        if missing:
            raise ConfigError(
                f"the teacher's joiner must have {', '.join(names)}, as icefall's have since "
                f"pruned_transducer_stateless2; this one lacks {', '.join(missing)}"
            )
        self.encoder_proj, self.decoder_proj, self.output_linear = (getattr(joiner, name) for name in names)
        self._check(joiner)

    @torch.no_grad()
    def _check(self, joiner: nn.Module) -> None:
        """That the joiner does no more than `forward` does."""
        encoder_out, decoder_out = (
            torch.randn(2, linear.weight.shape[1]) for linear in (self.encoder_proj, self.decoder_proj)
        )
        try:
            is_ours = torch.allclose(joiner(encoder_out, decoder_out), self(encoder_out, decoder_out), atol=1e-4)
        except Exception:  # whatever the teacher's own code raises
            is_ours = False
        if not is_ours:
            raise ConfigError("the teacher's joiner must be output_linear(tanh(encoder_proj + decoder_proj))")

    def forward(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True) -> Tensor:
        """As `Joiner.forward`: logits (..., V)."""
        if project_input:
            encoder_out, decoder_out = self.encoder_proj(encoder_out), self.decoder_proj(decoder_out)
        return self.output_linear(torch.tanh(encoder_out + decoder_out))


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
    return [path.with_name(path.name.replace("encoder", name, 1)) for name in _USED_PARTS]


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
    missing = [name for name in ("encoder", "decoder", "joiner") if not hasattr(module, name)]
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
