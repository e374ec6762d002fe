"""Tests of local/compute_fbank.py."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from compute_fbank import compute_fbank, main, make_extractor, parse_shard, validate_features, why_no_kaldifeat
from feature_sets import UtteranceCuts
from prepare_manifests import prepare_manifests
from run_sh import RECIPE
from small_corpus import TINY_YAML, small_config, write_corpus, write_musan, write_utterance
from train_bpe import main as train_bpe_main
from twopass_kd.config.schema import ConfigError, FeaturesConfig
from twopass_kd.files.layout import cuts_path, features_dir, manifest_path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("with space é")
    folders = write_corpus(root / "corpus", count=3)
    write_utterance(folders["train-clean"], "10-100-0009", "IN STEREO", seconds=1.5, rate=44100, channels=2)
    cfg = small_config("corpus.speed_perturb=[0.9]")
    prepare_manifests(cfg, root / "corpus", root / "data")
    compute_fbank(cfg, root / "data", num_jobs=2)
    return cfg, root


@pytest.fixture
def in_this_process(monkeypatch):
    """No processes of its own, which import torch; `prepared`, the program and run.sh's tests have them."""
    monkeypatch.setattr("compute_fbank._make_pool", ThreadPoolExecutor)


def cuts_of(data_dir, part):
    return {cut.id: cut for cut in CutSet.from_file(cuts_path(data_dir, part))}


def test_compute_fbank_one_cut_per_utterance_with_its_features(prepared):
    cfg, root = prepared
    cuts = cuts_of(root / "data", "test-other")
    assert sorted(cuts) == [f"40-400-000{i}" for i in range(3)]
    for number, cut in enumerate(cuts.values()):
        values = cut.load_features()
        assert values.shape == (80 + 10 * number, 80) and np.isfinite(values).all()
        assert cut.supervisions[0].id == cut.id and cut.sampling_rate == 16000


def test_compute_fbank_equals_kaldi_native_fbank(prepared):
    knf = pytest.importorskip("kaldi_native_fbank", reason="the independent implementation is not installed")
    cut = cuts_of(prepared[1] / "data", "dev-clean")["20-200-0001"]
    options = knf.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges = 0, False
    options.mel_opts.num_bins, options.mel_opts.high_freq = 80, -400
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(16000, cut.load_audio()[0].tolist())
    fbank.input_finished()
    reference = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    np.testing.assert_allclose(cut.load_features(), reference, atol=0.06)  # lilcom stores with a step of about 0.1


def test_compute_fbank_stereo_is_resampled_first_channel(prepared):
    root = prepared[1]
    cut = cuts_of(root / "data", "train-clean")["10-100-0009"]
    assert cut.num_frames == 150 and cut.sampling_rate == 16000
    samples, rate = soundfile.read(root / "corpus" / "train-clean" / "10" / "100" / "10-100-0009.flac")
    assert rate == 44100 and samples.shape[1] == 2
    audio = cut.load_audio()
    assert audio.shape == (1, 24000)
    # A third of the band is lost in resampling white noise to 16 kHz; the other channel would be uncorrelated.
    kept = np.fft.irfft(np.fft.rfft(samples[:, 0])[: 24000 // 2 + 1], 24000) * 24000 / len(samples)
    assert np.corrcoef(kept, audio[0])[0, 1] > 0.95


def test_compute_fbank_speed_perturbs_train_only(prepared):
    root = prepared[1]
    train, dev = cuts_of(root / "data", "train-clean"), cuts_of(root / "data", "dev-clean")
    assert len(train) == 8 and len(dev) == 3
    slow = train["10-100-0000_sp0.9"]
    assert slow.num_frames == pytest.approx(train["10-100-0000"].num_frames / 0.9, abs=1)
    assert slow.supervisions[0].text == train["10-100-0000"].supervisions[0].text


def test_compute_fbank_shuffles_perturbed_copies_among_the_originals(prepared):
    """They used to follow as a block, out of reach of a sampler's shuffle buffer."""
    cfg, root = prepared
    stored = [cut.id for cut in CutSet.from_file(cuts_path(root / "data", "train-clean"))]
    assert stored == [cut.id for cut in UtteranceCuts(root / "data", "train-clean", 16000, [0.9])[:]]  # always the same
    slow = ["_sp" in name for name in stored]
    assert sum(slow) == 4 and slow not in (sorted(slow), sorted(slow, reverse=True))
    dev = [cut.id for cut in CutSet.from_file(cuts_path(root / "data", "dev-clean"))]
    assert dev == sorted(dev)


def test_compute_fbank_shards_are_collected_and_an_interrupted_one_goes_on(
    prepared, tmp_path, monkeypatch, in_this_process
):
    cfg, root = prepared
    monkeypatch.setattr("compute_fbank._CHUNK", 1)
    prepare_manifests(cfg, root / "corpus", tmp_path)
    compute_fbank(cfg, tmp_path, shard=(1, 3))
    (partial,) = (tmp_path / "fbank").glob(".partial-librispeech_feats_train-clean-*")
    assert sorted(p.name for p in partial.glob("cuts-*")) == [f"cuts-{i}.jsonl.gz" for i in (1, 4, 7)]
    assert not cuts_path(tmp_path, "train-clean").exists()
    compute_fbank(cfg, tmp_path, shard=(0, 3))
    (partial / "cuts-3.jsonl.gz").unlink()  # as if killed before the chunk was finished
    (partial / "feats-3.lca").write_bytes(b"half")
    kept = (partial / "feats-1.lca").stat().st_mtime_ns
    compute_fbank(cfg, tmp_path)
    final = features_dir(tmp_path, "train-clean")
    assert (final / "feats-1.lca").stat().st_mtime_ns == kept and not list((tmp_path / "fbank").glob(".partial*"))
    whole, collected = (cuts_of(folder, "train-clean") for folder in (root / "data", tmp_path))
    assert list(whole) == list(collected)
    for name in whole:
        np.testing.assert_array_equal(whole[name].load_features(), collected[name].load_features())


def start(data_dir, *options):
    """The program in a process group of its own, with chunks of one cut."""
    code = "import sys, compute_fbank; compute_fbank._CHUNK = 1; sys.exit(compute_fbank.main())"
    command = [sys.executable, "-c", code, "--conf", TINY_YAML, "--data-dir", data_dir, "--nj", "1", *options]
    environment = {**os.environ, "PYTHONPATH": f"{RECIPE / 'local'}:{RECIPE}"}
    return subprocess.Popen([*command, "corpus.speed_perturb=[0.9]"], env=environment, start_new_session=True)


def test_compute_fbank_killed_goes_on_and_processes_share_a_folder(prepared, tmp_path):
    cfg, root = prepared
    prepare_manifests(cfg, root / "corpus", tmp_path)
    killed = start(tmp_path)
    while len(done := list(tmp_path.glob("fbank/.partial-*/cuts-*"))) < 2:
        assert killed.poll() is None
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    times = {path.name: path.stat().st_mtime_ns for path in done}
    both = [start(tmp_path, "--shard", f"{k}/2") for k in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    for path in done:
        assert path.stat().st_mtime_ns == times[path.name], "computed twice"
    assert start(tmp_path).wait(timeout=120) == 0
    for part in ("train-clean", "test-other"):
        whole, collected = (cuts_of(folder, part) for folder in (root / "data", tmp_path))
        assert list(whole) == list(collected)
        for name in whole:
            np.testing.assert_array_equal(whole[name].load_features(), collected[name].load_features())
    assert not list((tmp_path / "fbank").glob(".*"))


def test_compute_fbank_unfinished_work_of_other_settings_is_not_taken_for_this(
    prepared, tmp_path, monkeypatch, in_this_process
):
    cfg, root = prepared
    monkeypatch.setattr("compute_fbank._CHUNK", 3)
    prepare_manifests(cfg, root / "corpus", tmp_path)
    compute_fbank(cfg, tmp_path, shard=(0, 2))
    compute_fbank(small_config("corpus.speed_perturb=[1.1]"), tmp_path, shard=(1, 2))
    assert len(list(tmp_path.glob("fbank/.partial-librispeech_feats_train-clean-*"))) == 2
    monkeypatch.setattr("compute_fbank._CHUNK", 2)  # chunks cut otherwise are not these either
    compute_fbank(cfg, tmp_path)
    assert list(cuts_of(tmp_path, "train-clean")) == list(cuts_of(root / "data", "train-clean"))
    assert not list((tmp_path / "fbank").glob(".*"))


def test_compute_fbank_musan_in_windows_of_10_seconds(tmp_path, in_this_process):
    cfg = small_config("corpus.musan=true")
    write_corpus(tmp_path / "corpus" / "LibriSpeech", count=1)
    write_musan(tmp_path / "corpus" / "musan")
    prepare_manifests(cfg, tmp_path / "corpus" / "LibriSpeech", tmp_path / "data")
    compute_fbank(cfg, tmp_path / "data")
    cuts = {cut.id: cut for cut in CutSet.from_file(tmp_path / "data" / "fbank" / "musan_cuts.jsonl.gz")}
    seconds = {"music-fma-0000-0": 10.0, "noise-fma-0000-0": 10.0, "noise-fma-0000-1": 6.5, "speech-fma-0000-0": 7.0}
    assert {name: cut.duration for name, cut in cuts.items()} == seconds
    for cut in cuts.values():
        assert cut.load_features().shape == (round(100 * cut.duration), 80)
        assert "/fbank/musan_feats/" in cut.features.storage_path


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "a/b"])
def test_compute_fbank_wrong_shard_is_an_error(text):
    with pytest.raises(ValueError, match="`--shard`.*must be K/N"):
        parse_shard(text)


def test_compute_fbank_finished_part_is_kept_until_its_source_changes(tmp_path, in_this_process):
    cfg = small_config()
    write_corpus(tmp_path / "corpus", count=1)
    prepare_manifests(cfg, tmp_path / "corpus", tmp_path / "data")
    compute_fbank(cfg, tmp_path / "data")
    storage = {part: features_dir(tmp_path / "data", part) / "feats-0.lca" for part in ("train-clean", "dev-clean")}
    times = {part: path.stat().st_mtime_ns for part, path in storage.items()}
    write_utterance(tmp_path / "corpus" / "dev-clean", "20-200-0007", "ONE MORE")
    prepare_manifests(cfg, tmp_path / "corpus", tmp_path / "data")  # writes all manifests again, one with new content
    compute_fbank(cfg, tmp_path / "data")
    assert storage["train-clean"].stat().st_mtime_ns == times["train-clean"]
    assert storage["dev-clean"].stat().st_mtime_ns != times["dev-clean"]
    assert sorted(cuts_of(tmp_path / "data", "dev-clean")) == ["20-200-0000", "20-200-0007"]
    cuts_path(tmp_path / "data", "train-clean").unlink()  # as after a kill before the last step
    compute_fbank(cfg, tmp_path / "data")
    assert len(cuts_of(tmp_path / "data", "train-clean")) == 1
    assert storage["train-clean"].stat().st_mtime_ns == times["train-clean"]
    assert not list((tmp_path / "data" / "fbank").glob(".partial*"))


def test_compute_fbank_moved_corpus_is_the_same_and_other_audio_is_not(tmp_path, in_this_process):
    """Also where ids and durations are the same, as those of a corpus without its noise are."""
    write_corpus(tmp_path / "corpus", count=1)
    prepare_manifests(small_config(), tmp_path / "corpus", tmp_path / "data")
    compute_fbank(small_config(), tmp_path / "data")
    storage = features_dir(tmp_path / "data", "train-clean") / "feats-0.lca"
    before = storage.stat().st_mtime_ns
    (tmp_path / "corpus").rename(tmp_path / "moved")
    prepare_manifests(small_config(), tmp_path / "moved", tmp_path / "data")
    compute_fbank(small_config(), tmp_path / "data")
    assert storage.stat().st_mtime_ns == before
    (cut,) = cuts_of(tmp_path / "data", "train-clean").values()
    assert cut.recording.sources[0].source == str(tmp_path / "moved/train-clean/10/100/10-100-0000.flac")

    path = tmp_path / "moved" / "train-clean" / "10" / "100" / "10-100-0000.flac"
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[::-1], rate)
    prepare_manifests(small_config(), tmp_path / "moved", tmp_path / "data")
    compute_fbank(small_config(), tmp_path / "data")
    assert storage.stat().st_mtime_ns != before
    storage.unlink()
    compute_fbank(small_config(), tmp_path / "data")
    assert storage.is_file()


def test_compute_fbank_audio_gone_after_stage_1_is_an_error_until_it_is_back(tmp_path, capsys, in_this_process):
    folders = write_corpus(tmp_path / "corpus", count=2)
    prepare_manifests(small_config(), tmp_path / "corpus", tmp_path / "data")
    gone = folders["train-clean"] / "10" / "100" / "10-100-0001.flac"
    gone.rename(tmp_path / "gone")
    args = ["--conf", str(TINY_YAML), "--data-dir", str(tmp_path / "data"), "--nj", "1"]
    assert main(args) == 1
    assert "part `train-clean`: 1 cuts must have features and have none: 10-100-0001" in capsys.readouterr().err
    assert not cuts_path(tmp_path / "data", "train-clean").exists()
    (tmp_path / "gone").rename(gone)
    assert main(args) == 0 and len(cuts_of(tmp_path / "data", "train-clean")) == 2


def user_manifests(tmp_path, change):
    """Lhotse's manifests as a user writes them, without stage 1; `change` alters the lines of supervisions."""
    write_corpus(tmp_path / "corpus", count=2)
    prepare_manifests(small_config(), tmp_path / "corpus", tmp_path / "data")
    for path in (tmp_path / "data" / "manifests").glob("*checksums*"):
        path.unlink()
    path = manifest_path(tmp_path / "data", "supervisions", "train-clean")
    lines = change(gzip.decompress(path.read_bytes()).splitlines(keepends=True))
    path.write_bytes(gzip.compress(b"".join(lines)))
    return ["--conf", str(TINY_YAML), "--data-dir", str(tmp_path / "data"), "--nj", "1"]


def edited(**fields):
    return lambda lines: [json.dumps({**json.loads(lines[0]), **fields}).encode() + b"\n", *lines[1:]]


@pytest.mark.parametrize("change, said", [
    (lambda lines: [lines[0], lines[0]], "`10-100-0000` must be the id of one cut, and is that of two: line 1 of"),
    (lambda lines: [lines[0], lines[1].replace(b'"recording_id": "10', b'"recording_id": "9')],
     "line 2, 10-100-0001: must be of a recording that is there, and 9-100-0001 is not"),
    (lambda lines: [lines[0], b"{\n"], "supervisions_train-clean.jsonl.gz must be a whole SupervisionSet"),
    (edited(start=-1.0), "line 1, 10-100-0000: lasts from -1.0 to "),  # once left out without a word
    (edited(duration=50.0), "line 1, 10-100-0000: lasts from 0.0 to 50.0 s and its recording 0.8 s, but must lie in"),
    (edited(duration="1"), "SupervisionSet (ValueError: line 1: `duration` ('1') must be a valid number)"),
    (edited(channel=5), "line 1, 10-100-0000: is of channel 5 and its recording has [0]; mend the manifests"),
    (edited(id="a\tb"), "its id must be text without tabs and line breaks; mend the manifests"),
    (edited(text="A \ud800"), r"10-100-0000: its text ('A \ud800') must be whole characters"),
])  # fmt: skip
def test_compute_fbank_manifests_of_the_user_with_a_fault(tmp_path, capsys, in_this_process, change, said):
    assert main(user_manifests(tmp_path, change)) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("fields, said", [
    ({"sources": []}, "recordings_train-clean.jsonl.gz, line 1, 10-100-0000: must have sources and samples; mend it"),
    ({"sampling_rate": 0}, "recordings_train-clean.jsonl.gz, line 1, 10-100-0000: must have sources and samples"),
    ({"id": 7}, "must be a whole RecordingSet (ValueError: line 1: `id` (7) must be a valid string); make it anew"),
    ({"sources": [{"type": "no such", "channels": [0], "source": "a"}]},
     "part `train-clean`: features of one of the 2 cuts from 10-100-0000 on cannot be computed"),
])  # fmt: skip
def test_compute_fbank_recordings_of_the_user_with_a_fault(tmp_path, capsys, in_this_process, fields, said):
    args = user_manifests(tmp_path, lambda lines: lines)
    path = manifest_path(tmp_path / "data", "recordings", "train-clean")
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(edited(**fields)(lines))))
    assert main(args) == 1
    assert said in capsys.readouterr().err


def test_compute_fbank_supervision_as_long_as_its_recording_but_for_rounding(tmp_path, in_this_process):
    assert main(user_manifests(tmp_path, edited(duration=0.805))) == 0
    assert len(cuts_of(tmp_path / "data", "train-clean")) == 2


def test_compute_fbank_manifests_of_the_user_are_known_by_their_paths(tmp_path, in_this_process):
    args = user_manifests(tmp_path, lambda lines: lines)
    assert main(args) == 0
    storage = features_dir(tmp_path / "data", "train-clean") / "feats-0.lca"
    before = storage.stat().st_mtime_ns
    assert main(args) == 0 and storage.stat().st_mtime_ns == before
    path = manifest_path(tmp_path / "data", "recordings", "train-clean")
    (tmp_path / "corpus").rename(tmp_path / "other")
    lines = gzip.decompress(path.read_bytes()).replace(b"/corpus/", b"/other/")
    path.write_bytes(gzip.compress(lines))
    main(args)  # of the other parts the audio is gone
    assert storage.stat().st_mtime_ns != before


def test_compute_fbank_manifests_of_the_user_with_files_of_one_name(tmp_path, in_this_process):
    """Once all cuts had the last one's audio."""
    args = user_manifests(tmp_path, lambda lines: lines)
    path = manifest_path(tmp_path / "data", "recordings", "train-clean")
    lines = gzip.decompress(path.read_bytes())
    wanted = []
    for file in sorted((tmp_path / "corpus" / "train-clean").rglob("*.flac")):
        (file.parent / file.stem).mkdir()
        wanted.append(str(file.rename(file.parent / file.stem / "audio.flac")))
        lines = lines.replace(str(file).encode(), wanted[-1].encode())
    path.write_bytes(gzip.compress(lines))
    assert main(args) == 0
    cuts = cuts_of(tmp_path / "data", "train-clean")
    assert [cuts[name].recording.sources[0].source for name in sorted(cuts)] == wanted


@pytest.mark.parametrize("program", [main, train_bpe_main])
def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path, capsys, in_this_process, program):
    args = user_manifests(tmp_path, lambda lines: lines)
    for name in ("fbank", "lang_bpe_30", ".partial-lang_bpe_30"):
        (tmp_path / "data" / name).write_text("a file where a folder is to be")
    assert program([*args[:4], "tokens.vocab_size=30"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: [Errno ")


def test_compute_fbank_without_manifests_names_the_stage(tmp_path):
    with pytest.raises(ConfigError, match="librispeech_recordings_train-clean.jsonl.gz; run stage 1"):
        compute_fbank(small_config(), tmp_path)


def test_make_extractor_takes_kaldifeat_only_where_it_works(caplog):
    caplog.set_level("INFO")
    assert make_extractor(FeaturesConfig(extractor="lhotse")).name == "kaldi-fbank"
    if why_no_kaldifeat() is None:
        assert make_extractor(FeaturesConfig()).name == "kaldifeat-fbank"
        return
    assert make_extractor(FeaturesConfig()).name == "kaldi-fbank"
    assert caplog.messages[-1] == f"features by Lhotse's Fbank, without kaldifeat: {why_no_kaldifeat()}"
    with pytest.raises(ConfigError, match="`features.extractor` .kaldifeat. must be importable"):
        make_extractor(FeaturesConfig(extractor="kaldifeat"))


def test_validate_features_wrong_number_of_bins(prepared):
    cuts = CutSet.from_file(cuts_path(prepared[1] / "data", "dev-clean")).to_eager()
    ids = [cut.id for cut in cuts]
    validate_features(cuts, ids, FeaturesConfig(), "dev-clean")
    with pytest.raises(ValueError, match=r"features must be \(80, 40\), not \(80, 80\)"):
        validate_features(cuts, ids, FeaturesConfig(num_mel_bins=40), "dev-clean")
    cuts[ids[0]].features.num_frames = 500
    with pytest.raises(ValueError, match="features must be"):
        validate_features(cuts, ids, FeaturesConfig(), "dev-clean")
