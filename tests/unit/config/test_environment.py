"""What checkpoints and results say of where they were made."""

import json

import torch

from twopass_kd.config.environment import describe_environment
from twopass_kd.models.checkpoint import load_checkpoint, save_checkpoint
from twopass_kd.training.training_log import environment_record


def test_record_adds_the_training_to_the_environment():
    record, plain = environment_record(world_size=3), describe_environment()
    assert {key: record[key] for key in plain} == plain
    assert set(record) - set(plain) == {"gpu", "world_size", "command", "omp_num_threads"}
    assert record["world_size"] == 3 and (record["gpu"] is None) == (not torch.cuda.is_available())
    assert plain["torch"] == torch.__version__.split("+")[0] or plain["torch"] == torch.__version__


def test_record_survives_json_and_checkpoints(tmp_path):
    record = environment_record(world_size=1)
    assert json.loads(json.dumps(record)) == record
    save_checkpoint({"model": {}, "config": {}, "environment": record}, tmp_path / "final.pt")
    assert load_checkpoint(tmp_path / "final.pt")["environment"] == record
