"""Cuts as lines: ids and durations are right whatever the line looks like, and the whole cut comes back."""

import gzip
import json

import pytest
from lhotse import MonoCut, load_manifest
from lhotse.testing.dummies import dummy_cut, dummy_features, dummy_supervision

from twopass_kd.data.cut_lines import CutLines, features_path, read_cuts, whole_cut, without_folders


def write_lines(path, *dicts, ensure_ascii=True):
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps(d, ensure_ascii=ensure_ascii) + "\n" for d in dicts)
    return path


def manifest(tmp_path):
    plain = dummy_cut(1, duration=7.25, with_data=False).to_dict()
    odd = {**dummy_cut(2, duration=1e-05).to_dict(), "id": 'naïve "quoted" \\ id'}
    other_order = dict(sorted(dummy_cut(3, start=0.5, duration=3.5).to_dict().items()))
    mixed = dummy_cut(4, duration=2.0).pad(duration=3.0).to_dict()
    return plain, odd, other_order, mixed


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_cut_lines_have_the_ids_and_durations_of_the_cuts(tmp_path, ensure_ascii):
    path = write_lines(tmp_path / "cuts.jsonl.gz", *manifest(tmp_path), ensure_ascii=ensure_ascii)
    expected = [(cut.id, cut.duration) for cut in load_manifest(path)]
    assert [(cut.id, cut.duration) for cut in CutLines(path)] == expected and len(expected) == 4


def test_whole_cut_is_what_the_line_says(tmp_path):
    path = write_lines(tmp_path / "data" / "cuts.jsonl.gz", *manifest(tmp_path))
    for line, cut in zip(CutLines(path), load_manifest(path)):
        want = cut.with_features_path_prefix(tmp_path) if isinstance(cut, MonoCut) else cut
        assert whole_cut(line.line, tmp_path / "data") == want.with_recording_path_prefix(tmp_path)
        assert whole_cut(line.with_id("doubled").line, tmp_path / "data").id == cut.id


def test_custom_fields_are_the_users(tmp_path):
    """`custom["line"]` was ours once."""
    cuts = [{**dummy_cut(1).to_dict(), "custom": {"line": value}} for value in (7, "text", None)]
    path = write_lines(tmp_path / "cuts.jsonl.gz", *cuts)
    assert [whole_cut(line.line, tmp_path).custom["line"] for line in CutLines(path)] == [7, "text", None]


@pytest.mark.parametrize("stored, found", [
    ("{here}/fbank/feats/f-0.lca", "{here}/fbank/feats/f-0.lca"),
    ("/gone/data/fbank/feats/f-0.lca", "{here}/fbank/feats/f-0.lca"),  # moved
    ("{other}/fbank/feats/f-0.lca", "{here}/fbank/feats/f-0.lca"),  # copied: the copy is read, not what it is of
    ("data/fbank/feats/f-0.lca", "{here}/fbank/feats/f-0.lca"),  # icefall's
    ("fbank/feats/f-0.lca", "{here}/fbank/feats/f-0.lca"),
    ("{other}/fbank/feats/f-1.lca", "{other}/fbank/feats/f-1.lca"),  # elsewhere, and nothing of it here
    ("/elsewhere/feats/f-0.lca", "/elsewhere/feats/f-0.lca"),
    ("data/feats/f-0.lca", "{root}/data/feats/f-0.lca"),
])  # fmt: skip
def test_features_are_read_where_the_data_are(tmp_path, stored, found):
    here, other = tmp_path / "here" / "fbank", tmp_path / "other" / "fbank"
    for path in (here / "fbank/feats/f-0.lca", other / "fbank/feats/f-0.lca", other / "fbank/feats/f-1.lca"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    names = {"here": here, "other": other, "root": here.parent}
    assert str(features_path(here, stored.format(**names))) == found.format(**names)


def test_data_are_identified_without_their_folders():
    line = b'{"id": "a", "storage_path": "%s", "sources": [{"source": "%s", "type": "file"}], "text": "A/B"}'
    assert without_folders(line % (b"/x/y/f.lca", b"/c/a.flac")) == without_folders(line % (b"f.lca", b"d e/a.flac"))
    assert without_folders(line % (b"/x/f.lca", b"a")) != without_folders(line % (b"/x/g.lca", b"a"))


@pytest.mark.parametrize("spoil, said", [
    (lambda content: content[:-12], r"must be a whole gzipped manifest \(EOFError"),
    (lambda content: gzip.decompress(content), r"must be a whole gzipped manifest \(BadGzipFile"),
    (lambda content: content + gzip.compress(b"{not json}\n"), r"line 5: b'\{not.*' must be a cut \(JSONDecodeErr"),
    (lambda content: content + gzip.compress(b'{"id": "a"}\n'), r"line 5: .* must be a cut"),
    (lambda content: content + gzip.compress(b'{"id": "a", "sources": [], "sampling_rate": 1, "num_samples": 1, '
                                             b'"duration": 1.0}\n'), r"line 5: .* must be a cut, not a Recording"),
])  # fmt: skip
def test_a_manifest_that_is_spoilt_is_named_with_the_line(tmp_path, spoil, said):
    path = write_lines(tmp_path / "cuts.jsonl.gz", *manifest(tmp_path))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path}.*{said}"):
        list(read_cuts(path))


@pytest.mark.parametrize("field, value, said", [
    ("id", 7, r"`id` \(7\) must be a valid string"),
    ("id", ["a"], r"`id` \(\['a'\]\) must be a valid string"),
    ("duration", "2.5", r"`duration` \('2.5'\) must be a valid number"),
    ("supervisions.0.start", None, r"`supervisions\[0\].start` \(None\) must be a valid number"),
    ("features.storage_path", None, r"`features.storage_path` \(None\) must be a valid string"),
    ("features.frame_shift", "10ms", r"`features.frame_shift` \('10ms'\) must be a valid number"),
    ("recording.sources.0.source", None, r"`recording.sources\[0\].source` \(None\) must be a valid string"),
    ("recording.sources.0.channels", 0, r"`recording.sources\[0\].channels` \(0\) must be a valid list"),
])  # fmt: skip
def test_a_cut_with_a_field_of_another_type_is_named(tmp_path, field, value, said):
    """Once TypeErrors and AttributeErrors without file, line and field, or trained on."""
    cut = dummy_cut(1, supervisions=[dummy_supervision(1)]).to_dict()
    *above, name = field.split(".")
    inside = cut
    for key in above:
        inside = inside[int(key) if key.isdigit() else key]
    inside[name] = value
    path = write_lines(tmp_path / "cuts.jsonl.gz", cut)
    with pytest.raises(ValueError, match=f"{path}, line 1: .* must be a cut, but {said}; make the manifest anew"):
        list(read_cuts(path))


def test_features_behind_a_url_stay_there(tmp_path):
    """Once a path of this disk was made of it."""
    cut = dummy_cut(1, features=dummy_features(1)).to_dict()
    cut["features"].update(storage_type="lilcom_url", storage_path="https://example.org/fbank")
    (line,) = CutLines(write_lines(tmp_path / "cuts.jsonl.gz", cut))
    assert whole_cut(line.line, tmp_path).features.storage_path == "https://example.org/fbank"
