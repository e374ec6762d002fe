#!/usr/bin/env python3
"""Stage 2b: BPE tokens from the training transcripts.

Writes `<data>/lang_bpe_<V>/{bpe.model,tokens.txt,transcript_words.txt}` with icefall's ids (`<blk>` 0, `<sos/eos>` 1,
`<unk>` 2). The same transcripts give the same bytes. Letters of any part's transcripts that the tokens do not bring
back are listed in `not_spelt.tsv` there.
"""

import io
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from command import make_parser, run
from prepare_manifests import corpus_parts
from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.data.cut_lines import manifest_lines
from twopass_kd.data.tokenizer import BLANK, SOS_EOS, UNK, Tokenizer, open_tokenizer
from twopass_kd.files.layout import lang_path, manifest_path
from twopass_kd.files.write import write_text_atomically


def train_bpe_model(texts: Sequence[str], vocab_size: int) -> bytes:
    """Train a sentencepiece BPE model.

    Args:
      texts: transcripts.
      vocab_size: pieces, the three special ones included.
    Returns:
      The bytes of `bpe.model`; they depend on nothing but the arguments.
    Raises:
      ConfigError: the text does not give so many pieces, or has more different letters than pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            character_coverage=1.0,
            normalization_rule_name="identity",  # `tokens.normalization` was applied
            user_defined_symbols=[BLANK, SOS_EOS],
            unk_piece=UNK,
            unk_id=2,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as e:
        raise _explain(e, texts, vocab_size) from e
    return model.getvalue()


def _explain(error: Exception, texts: Sequence[str], vocab_size: int) -> Exception:
    largest = re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", str(error))
    if largest:
        return ConfigError(
            f"`tokens.vocab_size` ({vocab_size}) must be at most {largest.group(1)}, all that the training transcripts"
            " give; lower it"
        )
    smallest = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
    if smallest:
        return ConfigError(
            f"`tokens.vocab_size` ({vocab_size}) must be at least {smallest.group(1)}, since the training transcripts"
            " have that many letters (special tokens included); raise it"
        )
    if not any(texts):
        return ConfigError("`corpus.train_parts` must have transcripts, but there is no text in their manifests")
    return error


def part_texts(data_dir: Path, part: str) -> Iterator[tuple[str, str]]:
    """Id and transcript of each utterance in the supervision manifest of a part, in its order.

    Raises:
      ConfigError: stage 1 has not run, or an utterance has no text.
    """
    path = manifest_path(data_dir, "supervisions", part)
    if not path.is_file():
        raise ConfigError(f"`--data-dir` ({data_dir}) must hold {path.name}; run stage 1, which makes it")
    for number, line in enumerate(manifest_lines(path), start=1):
        try:
            supervision = json.loads(line)
            name, text = supervision["id"], supervision.get("text")
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ConfigError(f"{path}, line {number}: must be a supervision ({e!r}); run stage 1 again") from e
        if not (isinstance(text, str) and text.strip()):
            raise ConfigError(f"{path}, line {number}, {name}: must have a text; mend or remove it")
        yield name, text


def list_not_spelt(data_dir: Path, parts: Sequence[str], tokenizer: Tokenizer) -> None:
    """Send all transcripts through the tokens and back, and list what does not survive in `not_spelt.tsv`.

    It stays in the references, where it counts as an error: no model of these tokens can say it.
    """
    rows = []
    for part in parts:
        found = [(name, tokenizer.not_spelt(text)) for name, text in part_texts(data_dir, part)]
        lost = [(name, letters) for name, letters in found if letters]
        rows += [f"{name}\t{part}\t{letters}\n" for name, letters in lost]
        if lost:
            letters = " ".join(sorted({*"".join(letters for _, letters in lost)}))
            logging.warning("%s: %d of %d transcripts have letters that no token spells (%s); see %s",
                            part, len(lost), len(found), letters, tokenizer.lang_dir / "not_spelt.tsv")  # fmt: skip
    write_text_atomically(tokenizer.lang_dir / "not_spelt.tsv", "".join(rows))


def write_lang(lang_dir: Path, texts: Sequence[str], vocab_size: int) -> None:
    """Train and write a lang folder; the whole folder appears at once."""
    model = train_bpe_model(texts, vocab_size)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokens = "".join(f"{processor.id_to_piece(i)} {i}\n" for i in range(processor.get_piece_size()))
    partial = lang_dir.with_name(f".partial-{lang_dir.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "bpe.model").write_bytes(model)
    (partial / "tokens.txt").write_text(tokens, encoding="utf-8")
    (partial / "transcript_words.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    shutil.rmtree(lang_dir, ignore_errors=True)
    partial.rename(lang_dir)


def train_bpe(cfg: Config, data_dir: Path) -> Path:
    """Stage 2b for a config.

    Returns:
      The lang folder.
    Raises:
      ConfigError: an impossible vocabulary size, or stage 1 missing.
    """
    texts = [text for part in cfg.corpus.train_parts for _, text in part_texts(data_dir, part)]
    lang_dir = lang_path(data_dir, cfg.tokens.vocab_size)
    write_lang(lang_dir, texts, cfg.tokens.vocab_size)
    logging.info("%s: %d pieces from %d transcripts", lang_dir, cfg.tokens.vocab_size, len(texts))
    list_not_spelt(data_dir, corpus_parts(cfg), open_tokenizer(cfg, data_dir))
    return lang_dir


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="holds manifests/ of stage 1")
    return run(parser, argv, lambda cfg, args: train_bpe(cfg, args.data_dir))


if __name__ == "__main__":
    sys.exit(main())
