"""Text <-> BPE token ids, from a `lang_bpe_<V>` folder as icefall has it."""

import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from twopass_kd.config.schema import Config
from twopass_kd.data.detokenize import detokenize
from twopass_kd.data.tokens_file import without_disambiguation
from twopass_kd.files.layout import lang_path
from twopass_kd.files.read import read_lines

BLANK, SOS_EOS, UNK = "<blk>", "<sos/eos>", "<unk>"  # ids 0, 1, 2
WORD_BEGIN = "\u2581"  # how sentencepiece writes a space


def too_many_tokens(num_frames: int, num_tokens: int, subsampling_factor: int) -> bool:
    """Whether an utterance has more tokens than the encoder gives frames, which k2's pruned loss cannot align.

    Args:
      num_frames: feature frames (10 ms), before subsampling.
      num_tokens: BPE tokens of the transcript.
      subsampling_factor: of the encoder. It gives at least `num_frames // subsampling_factor - 1` frames.
    """
    return num_tokens > num_frames // subsampling_factor - 1


def parse_tokens(lines: Iterable[str]) -> dict[str, str]:
    """Piece -> its number as written, of the lines of a tokens.txt, without icefall's disambiguation symbols."""
    rows = [line.rpartition(" ")[::2] for line in lines]
    return dict(rows[: len(without_disambiguation([piece for piece, _ in rows]))])


class Tokenizer:
    """BPE tokens of a folder that holds `bpe.model` and `tokens.txt`.

    The two files are compared when loaded, since a decoder that reads only tokens.txt (sherpa-onnx's, for example)
    would give other words with another one.

    Args:
      lang_dir: e.g. `data/lang_bpe_500`.
      normalization: Unicode's form that texts are put into first, NFC or NFKC.
    Raises:
      ValueError: a file is missing, or the files do not belong together or are not laid out as
        `<blk>` 0, `<sos/eos>` 1, `<unk>` 2.
    """

    def __init__(self, lang_dir: Path, normalization: str = "NFC") -> None:
        lang_dir = self.lang_dir = Path(lang_dir)
        self.normalization = normalization
        for name in ("bpe.model", "tokens.txt"):
            if not (lang_dir / name).is_file():
                raise ValueError(f"`lang_dir` ({lang_dir}) must hold {name}; run stage 2, which makes it")
        self._sp = sentencepiece.SentencePieceProcessor()
        try:
            self._sp.load(str(lang_dir / "bpe.model"))
        except (RuntimeError, OSError) as e:
            raise ValueError(f"`{lang_dir / 'bpe.model'}` must be a sentencepiece model: {e}; run stage 2 again") from e
        self.pieces: list[str] = [self._sp.id_to_piece(i) for i in range(self._sp.get_piece_size())]
        self._check(lang_dir)
        self.blank_id, self.sos_id, self.eos_id, self.unk_id = 0, 1, 1, 2

    def _check(self, lang_dir: Path) -> None:
        if self.pieces[:3] != [BLANK, SOS_EOS, UNK]:
            raise ValueError(
                f"`{lang_dir / 'bpe.model'}` must start with {BLANK} {SOS_EOS} {UNK}, not {' '.join(self.pieces[:3])}"
            )
        tokens = lang_dir / "tokens.txt"
        listed = parse_tokens(read_lines(tokens, f"`{tokens}`", "run stage 2 again"))
        if listed == {piece: str(i) for i, piece in enumerate(self.pieces)}:
            return
        moved = [piece for i, piece in enumerate(self.pieces) if listed.get(piece) != str(i)]
        differing = [*moved, *sorted({*listed} - {*self.pieces})]
        raise ValueError(
            f"`{lang_dir / 'tokens.txt'}` ({len(listed)} tokens) must list the pieces of bpe.model beside it"
            f" ({len(self.pieces)}); they differ at {differing[0]!r}; take both from one folder or run stage 2 again"
        )

    @property
    def vocab_size(self) -> int:
        """V, blank included."""
        return len(self.pieces)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, normalised; blank and sos/eos are among them only where a text names them."""
        return self._sp.encode([unicodedata.normalize(self.normalization, text) for text in texts], out_type=int)

    def normalize(self, texts: Iterable[str]) -> list[str]:
        """Texts as a model without errors gives them: `normalization`, the rules of bpe.model (none in stage 2's, NFKC
        and more in icefall's), single spaces. References are scored in this form."""
        normalized = [self._sp.normalize(unicodedata.normalize(self.normalization, text)) for text in texts]
        return [" ".join(text.replace(WORD_BEGIN, " ").split()) for text in normalized]

    def not_spelt(self, text: str) -> str:
        """The letters of a text, normalised, that its tokens do not bring back, each once; usually none."""
        want = self.normalize([text])[0]
        got = self.decode(self.encode([text]))[0]
        return "" if got == want else "".join(dict.fromkeys(c for c in want if c not in got)) or want

    def decode(self, ids_batch: list[list[int]]) -> list[str]:
        """The text of each list of token ids; blank and sos/eos are dropped."""
        return [detokenize([self.pieces[i] for i in ids if i > self.sos_id]) for ids in ids_batch]

    def digest(self) -> str:
        """SHA-256 of the pieces in their order (the lines of tokens.txt): equal for models that share tokens."""
        lines = "".join(f"{piece} {i}\n" for i, piece in enumerate(self.pieces))
        return hashlib.sha256(lines.encode()).hexdigest()


def open_tokenizer(cfg: Config, data_dir: Path) -> Tokenizer:
    """The tokens of an experiment: those of `data_dir` that its config says."""
    return Tokenizer(lang_path(data_dir, cfg.tokens.vocab_size), cfg.tokens.normalization)
