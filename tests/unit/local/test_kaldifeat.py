"""kaldifeat, where it is installed, gives the filter banks that Lhotse and kaldi-native-fbank give, in stage 2 too."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet

import compute_fbank
from prepare_manifests import prepare_manifests
from run_sh import RECIPE, ROOT
from small_corpus import small_config, write_corpus
from twopass_kd.config.schema import ConfigError, FeaturesConfig
from twopass_kd.files.layout import cuts_path

ATOL = 5e-4
ATOL_RARE = 2e-3  # of one value in 10,000: a bin far weaker than its neighbours is what float32 leaves of their FFT
problem = compute_fbank.why_no_kaldifeat()
installed = pytest.mark.skipif(problem is not None, reason=f"no kaldifeat (`make kaldifeat` installs it): {problem}")


def audio(kind: str, samples: int) -> np.ndarray:
    rng = np.random.default_rng(samples)
    noise = rng.normal(0, 0.1, samples)
    if kind == "speech":  # voiced: harmonics of a gliding pitch under a slow envelope, and hardly any noise
        time = np.arange(samples) / 16000
        phase = 2 * np.pi * (120 * time + 20 * np.sin(2 * time))
        noise = 0.3 * np.sin(3 * time) ** 2 * sum(np.sin(k * phase) / k for k in range(1, 20)) + 1e-3 * noise
    return noise.astype(np.float32)


def native(samples: np.ndarray) -> np.ndarray:
    knf = pytest.importorskip("kaldi_native_fbank", reason="the independent implementation is not installed")
    options = knf.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges = 0, False
    options.mel_opts.num_bins, options.mel_opts.high_freq = 80, compute_fbank.HIGH_FREQ
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(16000, samples)
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def assert_equal(features: np.ndarray, others: np.ndarray) -> None:
    difference = np.abs(features - others)
    assert difference.max() < ATOL_RARE and (difference > ATOL).mean() <= 1e-4


@installed
@pytest.mark.parametrize("kind", ["noise", "speech"])
@pytest.mark.parametrize("samples", [400, 16000, 16079, 16080, 65432])
def test_kaldifeat_equals_lhotse_and_kaldi_native_fbank(kind, samples):
    x = audio(kind, samples)
    kaldifeat = compute_fbank.make_extractor(FeaturesConfig()).extract(x, 16000)
    lhotse = compute_fbank.make_extractor(FeaturesConfig(extractor="lhotse")).extract(x, 16000)
    assert kaldifeat.shape == lhotse.shape == ((samples + 80) // 160, 80)
    assert_equal(kaldifeat, lhotse)
    assert_equal(kaldifeat, native(x))


@installed
def test_kaldifeat_batch_equals_one_by_one():
    extractor = compute_fbank.make_extractor(FeaturesConfig(extractor="kaldifeat"))
    sounds = [audio("noise", samples) for samples in (16000, 20000, 16000, 12345)]
    together = extractor.extract_batch(list(sounds), 16000)
    for x, features in zip(sounds, together):
        np.testing.assert_allclose(features, extractor.extract(x, 16000), atol=ATOL, rtol=0)


@installed
def test_compute_fbank_by_kaldifeat_in_workers(tmp_path, caplog):
    """Two spawned processes; stored as Lhotse's, up to what lilcom rounds away."""
    caplog.set_level("INFO")
    cfg = small_config()
    write_corpus(tmp_path / "corpus", count=3)
    prepare_manifests(cfg, tmp_path / "corpus", tmp_path / "data")
    compute_fbank.compute_fbank(cfg, tmp_path / "data", num_jobs=2)
    assert "features by kaldifeat, which works here (`features.extractor` is auto)" in caplog.messages
    lhotse = compute_fbank.make_extractor(FeaturesConfig(extractor="lhotse"))
    for cut in CutSet.from_file(cuts_path(tmp_path / "data", "train-clean")):
        assert cut.features.type == "kaldifeat-fbank"
        np.testing.assert_allclose(cut.load_features(), lhotse.extract(cut.load_audio(), 16000), atol=0.06)


FORKED = """
import multiprocessing, numpy, sys
from compute_fbank import make_extractor
from twopass_kd.config.load import FeaturesConfig
extractor = make_extractor(FeaturesConfig(extractor="kaldifeat"))
def shape(samples):
    return extractor.extract(numpy.zeros(samples, dtype=numpy.float32), 16000).shape
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(shape, [16000, 32000]) == [(100, 80), (200, 80)]
"""


@installed
def test_kaldifeat_in_forked_processes():
    environment = {**os.environ, "PYTHONPATH": f"{RECIPE}:{RECIPE / 'local'}", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", FORKED], env=environment, check=True, timeout=120)


def test_why_no_kaldifeat_tells_of_a_build_for_another_torch(tmp_path, monkeypatch):
    (tmp_path / "kaldifeat.py").write_text("raise ImportError('kaldifeat was built using PyTorch 1.0\\nBut you use 2')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kaldifeat", raising=False)
    assert compute_fbank.why_no_kaldifeat() == "kaldifeat was built using PyTorch 1.0 But you use 2"
    assert compute_fbank.make_extractor(FeaturesConfig()).name == "kaldi-fbank"
    with pytest.raises(ConfigError, match="must be importable .kaldifeat was built using .*do `make kaldifeat`"):
        compute_fbank.make_extractor(FeaturesConfig(extractor="kaldifeat"))


def build(*arguments, **environment):
    command = ["/bin/bash", ROOT / "tools" / "build_kaldifeat.sh", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_build_kaldifeat_without_a_compiler_says_so(tmp_path):
    python = tmp_path / "python"  # has torch and no kaldifeat
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 9.9 || exit 1\n')
    python.chmod(0o755)
    done = build(python, PATH="/usr/bin:/bin", CXX="no-such-compiler")
    assert done.returncode == 1
    assert "error: `no-such-compiler` must be a C++ compiler, and there is none on PATH" in done.stderr


def test_build_kaldifeat_that_fails_names_its_log_and_installs_nothing(tmp_path):
    python, log = tmp_path / "python", Path(ROOT / "build" / "kaldifeat.log")
    python.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/calls"\n[ "$1" = -c ] && echo 9.9 || exit 1\n')
    python.chmod(0o755)
    done = build(python, PATH="/usr/bin:/bin", CXX="true")
    assert done.returncode == 1
    assert f"error: kaldifeat cannot be compiled for torch 9.9; {python} is as it was; the end of {log}" in done.stderr
    assert "install --no-deps --force" not in (tmp_path / "calls").read_text()


def test_build_kaldifeat_wrong_interpreter(tmp_path):
    done = build(tmp_path / "none", PATH="/usr/bin:/bin")
    assert done.returncode == 1 and "must be a Python interpreter" in done.stderr
