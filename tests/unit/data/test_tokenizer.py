"""Tests of twopass_kd/data/tokenizer.py."""

import pytest
import sentencepiece

from train_bpe import write_lang
from twopass_kd.data.tokenizer import Tokenizer, too_many_tokens

TEXTS = ["THE OLD CAPTAIN FOUND A GOLDEN MIRROR", "SHE WALKED BEHIND THE CASTLE", "THREE DAYS LATER"]


@pytest.fixture()
def lang_dir(tmp_path):
    write_lang(tmp_path / "lang_bpe_40", TEXTS, 40)
    return tmp_path / "lang_bpe_40"


def test_tokenizer_round_trip(lang_dir):
    tokenizer = Tokenizer(lang_dir)
    ids = tokenizer.encode([*TEXTS, ""])
    assert tokenizer.decode(ids) == [*TEXTS, ""]
    assert all(2 < i < 40 for row in ids for i in row)
    assert (tokenizer.vocab_size, tokenizer.blank_id, tokenizer.sos_id, tokenizer.eos_id) == (40, 0, 1, 1)
    assert tokenizer.pieces[:3] == ["<blk>", "<sos/eos>", "<unk>"] and len(tokenizer.pieces) == 40


def test_tokenizer_decode_drops_blank_and_sos(lang_dir):
    tokenizer = Tokenizer(lang_dir)
    ids = tokenizer.encode(TEXTS[:1])[0]
    assert tokenizer.decode([[1, *ids[:2], 0, 0, *ids[2:], 1]]) == TEXTS[:1]


def test_tokenizer_letters_it_has_not_seen_are_unknown(lang_dir):
    tokenizer = Tokenizer(lang_dir)
    assert 2 in tokenizer.encode(["QUIZ"])[0]


def test_tokenizer_normalize_is_what_an_error_free_model_says(lang_dir, tmp_path):
    texts = ["E\u0301TE\u0301", "  A\u00a0 B\t", "\u0e17\u0e33", "1\u00ba"]
    assert Tokenizer(lang_dir).normalize(texts) == ["\u00c9T\u00c9", "A B", "\u0e17\u0e33", "1\u00ba"]
    assert Tokenizer(lang_dir, "NFKC").normalize(texts) == ["\u00c9T\u00c9", "A B", "\u0e17\u0e4d\u0e32", "1o"]
    model = lang_dir / "bpe.model"  # with rules of its own, as icefall's
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, "\u00c9 1o \u0e17\u0e4d\u0e32"]), model_writer=model.open("wb"), vocab_size=46,
        model_type="bpe", unk_id=2, bos_id=-1, eos_id=-1, user_defined_symbols=["<blk>", "<sos/eos>"], minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokens = "".join(f"{pieces.id_to_piece(i)} {i}\n" for i in range(pieces.get_piece_size()))
    (lang_dir / "tokens.txt").write_text(tokens, encoding="utf-8")
    tokenizer = Tokenizer(lang_dir)
    assert tokenizer.normalize(texts) == ["\u00c9T\u00c9", "A B", "\u0e17\u0e4d\u0e32", "1o"]
    assert tokenizer.decode(tokenizer.encode(texts)) == tokenizer.normalize(texts)


def test_tokenizer_not_spelt_are_the_letters_that_do_not_come_back(lang_dir):
    tokenizer = Tokenizer(lang_dir)
    assert [tokenizer.not_spelt(text) for text in (TEXTS[0], "", "THE \u00d6LD \u00dc", "THE <blk>")] == [
        "", "", "\u00d6\u00dc", "<blk>"
    ]  # fmt: skip


def test_tokenizer_digest_tells_vocabularies_apart(lang_dir, tmp_path):
    write_lang(tmp_path / "same", TEXTS, 40)
    write_lang(tmp_path / "smaller", TEXTS, 39)
    write_lang(tmp_path / "other", ["FIVE SEVEN NINE BROWN FOXES JUMPED OVER LAZY DOGS WITH HAMMERS"], 40)
    digest = Tokenizer(lang_dir).digest()
    assert Tokenizer(tmp_path / "same").digest() == digest
    assert len({digest, Tokenizer(tmp_path / "smaller").digest(), Tokenizer(tmp_path / "other").digest()}) == 3


def test_tokenizer_accepts_icefalls_disambiguation_symbols(lang_dir):
    digest = Tokenizer(lang_dir).digest()
    with open(lang_dir / "tokens.txt", "a") as f:
        f.write("#0 40\n#1 41\n")
    assert Tokenizer(lang_dir).digest() == digest


def test_tokenizer_pieces_may_look_like_disambiguation_symbols_or_hold_other_spaces(tmp_path):
    import sentencepiece

    spaces = [f"{letter}{space}" for letter, space in zip("ABCDE", "\u2028\u2029\u0085\u00a0\u3000")]
    with open(tmp_path / "bpe.model", "wb") as f:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS),
            model_writer=f,
            vocab_size=50,
            model_type="bpe",
            user_defined_symbols=["<blk>", "<sos/eos>", "#1", *spaces],
            unk_id=2,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bpe.model"))
    tokens = "".join(f"{processor.id_to_piece(i)} {i}\r\n" for i in range(50)) + "#0 50\n#1 51\n"
    (tmp_path / "tokens.txt").write_bytes(tokens.encode())
    assert {"#1", *spaces} <= {*Tokenizer(tmp_path).pieces}


def test_tokenizer_names_a_tokens_file_that_is_not_utf8(lang_dir):
    (lang_dir / "tokens.txt").write_bytes(b"<blk> 0\nCAF\xc9 1\n")
    with pytest.raises(ValueError, match="tokens.txt`, line 2: must be UTF-8 text"):
        Tokenizer(lang_dir)


@pytest.mark.parametrize("missing", ["bpe.model", "tokens.txt"])
def test_tokenizer_missing_file_names_the_stage(lang_dir, missing):
    (lang_dir / missing).unlink()
    with pytest.raises(ValueError, match=f"must hold {missing}; run stage 2"):
        Tokenizer(lang_dir)


def test_tokenizer_files_that_do_not_belong_together(lang_dir, tmp_path):
    write_lang(tmp_path / "smaller", TEXTS, 39)
    (lang_dir / "tokens.txt").write_bytes((tmp_path / "smaller" / "tokens.txt").read_bytes())
    with pytest.raises(ValueError, match=r"\(39 tokens\) must list the pieces of bpe.model beside it \(40\)"):
        Tokenizer(lang_dir)
    lines = (tmp_path / "smaller" / "tokens.txt").read_text().splitlines()
    swapped = [*lines[:4], lines[4].split()[0] + " 5", lines[5].split()[0] + " 4", *lines[6:]]
    (tmp_path / "smaller" / "tokens.txt").write_text("\n".join(swapped) + "\n")
    with pytest.raises(ValueError, match="they differ at '" + lines[4].split()[0]):
        Tokenizer(tmp_path / "smaller")


def test_tokenizer_damaged_model(lang_dir):
    (lang_dir / "bpe.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="must be a sentencepiece model"):
        Tokenizer(lang_dir)


def test_tokenizer_foreign_special_tokens(lang_dir):
    import sentencepiece

    with open(lang_dir / "bpe.model", "wb") as f:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=f, vocab_size=40, model_type="bpe", minloglevel=2
        )
    with pytest.raises(ValueError, match="must start with <blk> <sos/eos> <unk>, not <unk> <s> </s>"):
        Tokenizer(lang_dir)


def test_too_many_tokens_never_more_than_the_encoder_gives():
    from twopass_kd.models.encoder import num_output_frames

    torch = pytest.importorskip("torch")
    for factor in (4, 6):
        for num_frames in range(20, 400):
            frames = int(num_output_frames(torch.tensor(num_frames), factor))
            fitting = max(n for n in range(num_frames) if not too_many_tokens(num_frames, n, factor))
            assert frames - 2 <= fitting <= frames
