"""When words are said, as manifests have it."""

from types import SimpleNamespace

from lhotse import SupervisionSegment
from lhotse.supervision import AlignmentItem

from small_corpus import small_config
from twopass_kd.search.word_times import word_times


def cut(name, text, symbols):
    speech = SupervisionSegment(name, name, 0.0, 2.0, text=text)
    if symbols:
        speech = speech.with_alignment("word", [AlignmentItem(s, 0.5 * i, 0.5) for i, s in enumerate(symbols)])
    return SimpleNamespace(id=name, supervisions=[speech])


def test_alignments_that_cannot_be_of_the_transcript_are_left_out_and_told(caplog):
    back = cut("back", "ONE TWO", ["ONE", "TWO"])
    back.supervisions[0].alignment["word"].reverse()
    back.supervisions[0].text = "TWO ONE"
    cuts = [
        cut("fits", "ONE TWO", ["", "one", "TWO"]),
        cut("other", "ONE TWO", ["ONE", "THREE"]),
        cut("none", "ONE", []),
        back,
    ]
    found = word_times(small_config(), "dev", SimpleNamespace(cuts=lambda parts: cuts), None, None)
    assert {name: [(w.word, w.start, w.end) for w in words] for name, words in found.items()} == {
        "fits": [("ONE", 0.5, 1.0), ("TWO", 1.0, 1.5)]
    }
    assert "dev: 2 alignments are not used (e.g. other: alignment of another text)" in caplog.text
