"""What the dev sets choose."""

from random_cuts import WORDS
from tiny import TINY_CONF
from train_bpe import write_lang
from twopass_kd.config.load import load_config
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.search.choose_on_dev import choose_weights
from twopass_kd.search.decode_set import Decoded
from twopass_kd.search.nbest import Hypothesis


def test_a_length_reward_wins_where_both_passes_like_short_texts(tmp_path):
    """No weight finds the right text: both passes prefer the shorter one, which lacks a word."""
    write_lang(tmp_path / "lang_bpe_40", [" ".join(WORDS)] * 3, 40)
    tokenizer = Tokenizer(tmp_path / "lang_bpe_40")
    short, right = tokenizer.encode(["ONE TWO", "ONE TWO THREE"])
    dev = Decoded(cut_ids=["a"], refs=[["ONE", "TWO", "THREE"]])
    dev.nbests["first_pass"] = [[Hypothesis(short, -1.0, []), Hypothesis(right, -2.0, [])]]
    dev.attention["first_pass"] = [[-1.0, -2.0]]
    cfg = load_config(TINY_CONF, ["decode.length_rewards=[0,2]", "decode.rescore_weights=[0,0.5,1]"])
    weight, length_reward, scan = choose_weights([dev], "first_pass", cfg, tokenizer)
    assert (weight, length_reward) == (0.5, 2.0)
    assert [(row["length_reward"], round(row["wer"])) for row in scan] == [(0, 33)] * 3 + [(2, 0)] * 3
