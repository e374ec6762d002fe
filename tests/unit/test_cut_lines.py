"""Cuts as lines: ids and durations are right whatever the line looks like, and the whole cut comes back."""

import gzip
import json

import pytest
from lhotse import load_manifest
from lhotse.testing.dummies import dummy_cut

from twopass_kd.cut_lines import CutLines, whole_cut


def write_lines(path, *dicts, ensure_ascii=True):
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


def test_whole_cut_is_what_the_line_says_under_the_new_name(tmp_path):
    path = write_lines(tmp_path / "cuts.jsonl.gz", *manifest(tmp_path))
    for line, cut in zip(CutLines(path), load_manifest(path)):
        assert whole_cut(line, tmp_path) == cut.with_features_path_prefix(tmp_path)
        assert whole_cut(line.with_id("doubled"), tmp_path).id == "doubled"
        assert whole_cut(cut, tmp_path) is cut
