"""Fixtures of the tests of twopass-recognize: a model that counts bursts of noise, and a recording of some."""

import pytest

from counting import CountingRuntime, write_talk
from twopass_kd.ondevice import stream


@pytest.fixture
def counting(monkeypatch):
    """Whatever model is asked for, it is the one that counts."""
    monkeypatch.setattr(stream, "open_runtime", lambda path, int8, num_threads: CountingRuntime())


@pytest.fixture
def talk(tmp_path):
    return write_talk(tmp_path / "talk.wav")
