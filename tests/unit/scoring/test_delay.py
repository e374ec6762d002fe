"""When words appear: out of tokens, frames and the times at which words are said."""

import numpy as np
import pytest

from twopass_kd.models.encoder import Conv2dSubsampling
from twopass_kd.scoring.delay import (
    RECEPTIVE_FIELD,
    TimedWord,
    describe_delays,
    heard_until,
    timed_words,
    word_delays,
    write_delay_summary,
)

PIECES, FRAMES = ["\u2581GO", "OD", "\u2581DAY"], [3, 5, 9]


def test_a_word_is_emitted_when_its_last_token_is():
    assert RECEPTIVE_FIELD == Conv2dSubsampling.receptive_field
    words = timed_words(PIECES, FRAMES, ["GOOD", "DAY"], subsampling_factor=4)
    assert words == [
        TimedWord("GOOD", heard_until(3, 4), heard_until(5, 4)),
        TimedWord("DAY", *[heard_until(9, 4)] * 2),
    ]
    assert heard_until(5, 4) == pytest.approx(0.27)
    assert timed_words(PIECES, FRAMES, ["GOODDAY"], 4) is None


def test_only_right_words_count_and_each_for_its_own():
    ref = [TimedWord("A", 0.0, 0.2), TimedWord("B", 0.2, 0.5), TimedWord("C", 0.6, 0.8)]
    hyp = [TimedWord("X", 0.1, 0.1), TimedWord("A", 0.1, 0.3), TimedWord("C", 0.7, 1.2)]
    delays = word_delays({"u": ref, "not decoded": ref}, {"u": hyp, "not aligned": hyp})
    np.testing.assert_allclose(delays, [[0.1, 0.1], [0.1, 0.4]])
    found = describe_delays(delays)
    assert (found.words, found.p50) == (2, pytest.approx(0.25)) and found.end_variance == pytest.approx(0.0225)
    assert describe_delays(word_delays({}, {})) is None


def test_summary_is_icefalls(tmp_path):
    found = describe_delays(np.array([[0.1, 0.1], [0.1, 0.5]]))
    write_delay_summary(tmp_path / "symbol-delay-summary-test-greedy_search.txt", "greedy_search", found)
    assert (tmp_path / "symbol-delay-summary-test-greedy_search.txt").read_text() == (
        "settings\t(start, end) symbol-delay (s) (start, end)\n"
        "greedy_search\tmean: (0.100, 0.300), variance: (0.000, 0.040)\n"
    )
