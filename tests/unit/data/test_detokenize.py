"""Tests of twopass_kd/data/detokenize.py: against sentencepiece."""

import io
import random

import pytest
import sentencepiece

from twopass_kd.data.detokenize import detokenize
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.scoring.wer import corpus_wer


@pytest.fixture(scope="module")
def lang_dir(tmp_path_factory):
    """As write_lang makes it, with byte fallback."""
    folder = tmp_path_factory.mktemp("lang")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["LE CAF NOIR", "UNE FOIS"] * 3),
        model_writer=model,
        vocab_size=275,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["<blk>", "<sos/eos>"],
        unk_id=2,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    (folder / "bpe.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokens = [f"{processor.id_to_piece(i)} {i}\n" for i in range(processor.get_piece_size())]
    (folder / "tokens.txt").write_text("".join(tokens), encoding="utf-8")
    return folder


def random_pieces(rng, words):
    """Letters out of bytes, whole or not, any bytes, unknown pieces and others."""
    pieces = []
    for _ in range(rng.randrange(9)):
        kind = rng.random()
        if kind < 0.4:
            letter = rng.choice("Öあ😀\u2581\u2028 ").encode()
            pieces += [f"<0x{byte:02X}>" for byte in letter[: rng.choice([1, 2, 3, 4, 4])]]
        elif kind < 0.6:
            pieces.append(f"<0x{rng.randrange(256):02X}>")
        else:
            pieces.append(rng.choice(["<unk>", "\u2581", *words]))
    return pieces


def test_detokenize_is_sentencepieces_decode(lang_dir):
    tokenizer = Tokenizer(lang_dir)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(lang_dir / "bpe.model"))
    rng = random.Random(0)
    for _ in range(20000):
        pieces = random_pieces(rng, tokenizer.pieces[259:])
        ids = [tokenizer.pieces.index(piece) for piece in pieces]
        assert detokenize(pieces) == tokenizer.decode([ids])[0] == processor.decode(ids), pieces


def test_tokenizer_round_trip_of_letters_it_has_not_seen(lang_dir):
    tokenizer = Tokenizer(lang_dir)
    texts = ["CAFÖ", "あ😀 Ω", "A"]
    assert tokenizer.decode(tokenizer.encode(texts)) == texts


def test_detokenize_leaves_out_half_a_letter_while_more_may_come():
    letter = [f"<0x{byte:02X}>" for byte in "😀".encode()]
    for count in range(4):
        assert detokenize(["\u2581A", *letter[:count]], is_final=False) == "A"
        assert detokenize(["\u2581A", *letter[:count]]) == "A" + "\ufffd" * count
        # The letter can no longer become whole.
        assert detokenize([*letter[:count], "\u2581A"], is_final=False) == "\ufffd" * count + " A"[not count :]
    assert detokenize(["\u2581A", *letter], is_final=False) == "A😀"
    assert detokenize(["\u2581A", "<0xFF>", letter[0]], is_final=False) == "A\ufffd"


def test_nul_as_a_byte_is_a_word_like_others():
    stats = corpus_wer([("a", ["A", "B"], ["A", detokenize(["<0x00>"])])])
    assert (stats.subs, stats.dels, stats.ins) == (1, 0, 0)
