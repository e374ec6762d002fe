"""A crash in the middle of a line of metrics.jsonl made the run unresumable."""

import json

import pytest

from tiny_training import make_data, make_trainer, stop_after
from twopass_kd.training.trainer import Interrupted


def test_resume_drops_the_broken_line(tmp_path):
    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "a").run(make_data(on_batch=stop_after(6)))
    with open(tmp_path / "a" / "metrics.jsonl", "a") as f:
        f.write('{"split": "train", "ep')
    make_trainer(tmp_path / "a").run(make_data())
    records = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records if r["split"] == "valid"] == [1, 2, 3]
