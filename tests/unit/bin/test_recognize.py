import hashlib
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile

from counting import RATE, WORDS, CountingRuntime, bursts, write
from tiny import VOCAB_SIZE, tiny_model
from twopass_kd.bin import recognize
from twopass_kd.export.onnx_files import chunk_metadata, export_onnx
from twopass_kd.ondevice import audio


def run(*args, status=0, capsys=None):
    code = recognize.main(["model", *map(str, args)])
    out, err = capsys.readouterr()
    assert code == status, err
    return out.splitlines(), err.splitlines()


def test_recognize_prints_a_line_per_file(counting, talk, tmp_path, capsys):
    one = write(tmp_path / "one.flac", bursts(0.5, 0.5))
    out, err = run(talk, one, talk, capsys=capsys)
    assert out == [f"{talk}\tONE TWO ONE TWO THREE", f"{one}\tONE", f"{talk}\tONE TWO ONE TWO THREE"]
    assert err == []


def test_recognize_many_files_keep_their_order(counting, tmp_path, capsys):
    files = [write(tmp_path / f"{i}.wav", bursts(*[0.4] * (1 + 7 * i % 6)), subtype="FLOAT") for i in range(40)]
    out, _ = run(*files, capsys=capsys)
    assert out == [f"{f}\t{' '.join(WORDS[: 7 * i % 6])}" for i, f in enumerate(files)]


@pytest.mark.parametrize("options, size", [([], 16), (["--int8"], 1), (["--stream"], 1)])
def test_recognize_batches(counting, talk, capsys, monkeypatch, options, size):
    encode, sizes = CountingRuntime.encode, []
    monkeypatch.setattr(CountingRuntime, "encode", lambda self, x, s: sizes.append(len(x)) or encode(self, x, s))
    run(*options, *[talk] * 20, capsys=capsys)
    assert max(sizes) == size


def test_recognize_streaming_prints_segments(counting, talk, capsys):
    out, err = run("--stream", talk, capsys=capsys)
    assert [line.split("\t")[::2] for line in out] == [[talk, "ONE TWO"], [talk, "ONE TWO THREE"]]
    spans = [[float(t) for t in line.split("\t")[1].strip("[]").split(" - ")] for line in out]
    # The second word comes at 1.3 s; 1.2 s after it the utterance ends, with the chunk of 0.16 s that has that time.
    assert spans[0][0] == 0 and 2.5 <= spans[0][1] <= 2.7 and spans[1][0] == spans[0][1] and 5.9 < spans[1][1] <= 6
    assert err == []


def events(*args, capsys):
    return [json.loads(line) for line in run("--stream", "--json", *args, capsys=capsys)[0]]


def test_recognize_streaming_events(counting, talk, capsys):
    lines = events(talk, capsys=capsys)
    assert [(e["event"], e["segment"], e["text"]) for e in lines] == [
        ("partial", 0, "ONE"),
        ("partial", 0, "ONE TWO"),
        ("final", 0, "ONE TWO"),
        ("partial", 1, "ONE"),
        ("partial", 1, "ONE TWO"),
        ("partial", 1, "ONE TWO THREE"),
        ("final", 1, "ONE TWO THREE"),
    ]
    assert [e["time"] for e in lines] == sorted(e["time"] for e in lines) and lines[-1]["time"] == 6.0
    assert 0.5 < lines[0]["time"] <= 0.9  # not before the burst, and as soon as it can be
    final = lines[-1]
    assert final["file"] == talk and final["tokens"] == ["\u2581ONE", "\u2581TWO", "\u2581THREE"]
    np.testing.assert_allclose(final["timestamps"], [3.6, 4.4, 5.2], atol=0.06)
    assert final["first_pass_text"] == "ONE TWO THREE" and len(final["nbest"]) == 3
    assert set(final["nbest"][0]) == {"text", "log_prob", "attention_log_prob", "score"}
    assert final["nbest"][0]["text"] == "ONE TWO THREE"


def test_recognize_shows_no_half_letters_while_more_may_come(counting, talk, capsys, monkeypatch):
    tokens = ("<blk>", "<sos/eos>", "<unk>", "<0xC3>", "<0x96>", "\u2581A", "B", "C", "D")
    monkeypatch.setattr(CountingRuntime, "info", replace(CountingRuntime.info, tokens=tokens))
    lines = events(talk, capsys=capsys)
    assert [(e["event"], e["text"]) for e in lines] == [
        ("partial", "Ö"),
        ("final", "Ö"),
        ("partial", "Ö"),
        ("partial", "Ö A"),
        ("final", "Ö A"),
    ]
    assert lines[-1]["tokens"] == ["<0xC3>", "<0x96>", "\u2581A"] and len(lines[-1]["timestamps"]) == 3


def test_recognize_segments_do_not_depend_on_the_chunk(counting, talk, capsys):
    def finals(*args):
        found = [e for e in events(*args, talk, capsys=capsys) if e["event"] == "final"]
        return [{k: v for k, v in e.items() if k not in ("event", "segment", "time", "file")} for e in found]

    reference = json.loads(run("--json", talk, capsys=capsys)[0][0])["segments"]
    assert len(reference) == 2
    for milliseconds in (1, 20, 100, 1000, 60000):
        assert finals("--chunk-ms", milliseconds) == reference, milliseconds


def test_recognize_json_per_file(counting, talk, tmp_path, capsys):
    silence = write(tmp_path / "silence.wav", np.zeros(RATE))
    lines = [json.loads(line) for line in run("--json", "--nbest", 2, talk, silence, capsys=capsys)[0]]
    assert [(e["file"], e["text"], e["duration"]) for e in lines] == [
        (talk, "ONE TWO ONE TWO THREE", 6.0),
        (silence, "", 1.0),
    ]
    assert [s["text"] for s in lines[0]["segments"]] == ["ONE TWO", "ONE TWO THREE"] and lines[1]["segments"] == []
    assert all(len(s["nbest"]) == 2 for s in lines[0]["segments"])


def test_recognize_nbest_lines(counting, talk, capsys):
    for options in ([], ["--stream"]):
        out, _ = run(*options, "--nbest", 2, talk, capsys=capsys)
        ranks = [line.split()[0] for line in out if line.startswith("    ")]
        assert ranks == ["1.", "2.", "1.", "2."]
        assert "second pass -0.000" in next(line for line in out if line.startswith("    1."))


@pytest.mark.parametrize(
    "args, match",
    [
        (["--nbest", "4"], r"\(4\) must be from 1 to 3, this model's beam"),
        (["--nbest", "0"], r"\(0\) must be a whole number from 1"),
        (["--nbest", "2", "--method", "greedy_search"], r"\(2\) must be 1 with --method greedy_search"),
        (["--chunk-ms", "20"], "must come with --stream"),
        (["--chunk-ms", "x", "--stream"], r"\(x\) must be a whole number"),
        (["--method", "beam_search"], "invalid choice: 'beam_search'"),
        (["-", "-"], "must be given once"),
    ],
)
def test_recognize_wrong_usage(counting, talk, capsys, args, match):
    with pytest.raises(SystemExit) as e:
        recognize.main(["model", talk, *args])
    assert e.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(match, err), err


@pytest.mark.parametrize("stream_option", [[], ["--stream"]])
def test_recognize_any_format(counting, tmp_path, capsys, stream_option):
    x8, x16, x44 = (bursts(0.5, 0.5, 0.5, rate=r) for r in (8000, 16000, 44100))
    files = [
        write(tmp_path / "8k.wav", x8, 8000),
        write(tmp_path / "44k.wav", np.stack([x44, 0 * x44], axis=1), 44100, subtype="PCM_24"),
        write(tmp_path / "24bit.wav", x16, subtype="PCM_24"),
        write(tmp_path / "x.flac", x16),
    ]
    out, err = run(*stream_option, *files, capsys=capsys)
    assert [line.split("\t")[-1] for line in out] == ["ONE TWO"] * 4
    assert sorted(err) == [
        f"{files[1]}: 2 channels, the first is used",
        f"{files[1]}: 44.1 kHz -> 16 kHz",
        f"{files[0]}: 8 kHz -> 16 kHz; it has nothing above 4 kHz",
    ]


@pytest.mark.parametrize("stream_option", [[], ["--stream"]])
def test_recognize_goes_on_after_a_bad_file(counting, talk, tmp_path, capsys, stream_option):
    empty, text, folder = tmp_path / "empty.wav", tmp_path / "text.wav", tmp_path / "folder"
    empty.touch()
    text.write_text("not audio\n")
    folder.mkdir()
    bad = [empty, text, folder, tmp_path / "missing.wav"]
    out, err = run(*stream_option, *bad, talk, status=1, capsys=capsys)
    assert {line.split("\t")[0] for line in out} == {talk}
    assert len(err) == 4
    for path, line in zip(bad, err):
        assert line.startswith(f"twopass-recognize: error: `{path}` must be")


def header(path, rate=RATE, channels=1):
    """A wav file of a second, whose header says what it likes."""
    soundfile.write(path, np.zeros(RATE), RATE)
    data = bytearray(Path(path).read_bytes())
    data[22:32] = struct.pack("<HII", channels, rate, 2 * channels * rate & 0xFFFFFFFF)
    Path(path).write_bytes(data)
    return path


@pytest.mark.parametrize("stream_option", [[], ["--stream"]])
def test_recognize_odd_files_cost_no_other_its_text(counting, talk, tmp_path, capsys, stream_option):
    for name in ("x.raw", "x.RAW"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 100)
    os.mkfifo(tmp_path / "fifo")
    os.symlink("nowhere", tmp_path / "link.wav")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
    soundfile.write(tmp_path / "loud.wav", np.full(RATE, 1e38, np.float32), RATE, subtype="FLOAT")
    bad = {
        tmp_path / "x.raw": "raw 16-bit mono samples at the model's rate go to `-`",
        tmp_path / "x.RAW": "raw 16-bit mono samples at the model's rate go to `-`",
        tmp_path / "fifo": "it is a named pipe, a socket or a device",
        tmp_path / "socket": "it is a named pipe, a socket or a device",
        "/dev/zero": "it is a named pipe, a socket or a device",
        tmp_path / "link.wav": "it is a link to nowhere, which does not exist",
        header(tmp_path / "no.wav", channels=0): "libsndfile reads",
        header(tmp_path / "many.wav", channels=65535): "libsndfile reads",
        header(tmp_path / "never.wav", rate=0): "libsndfile reads",
        header(tmp_path / "slow.wav", rate=1): "must have a sampling rate from 1 to 1000 kHz",
        header(tmp_path / "fast.wav", rate=10**9): "must have a sampling rate from 1 to 1000 kHz",
        tmp_path / "loud.wav": "must have samples in [-1, 1], sample 0 (0.000 s) is",
    }
    out, err = run(*stream_option, talk, *bad, talk, status=1, capsys=capsys)
    assert {line.split("\t")[0] for line in out} == {talk} and len(out) == (4 if stream_option else 2)
    assert len(err) == len(bad)
    for path, why in bad.items():
        (line,) = [line for line in err if line.startswith(f"twopass-recognize: error: `{path}` must ")]
        assert why in line


@pytest.mark.parametrize("fails_after", [0, 1.0])
def test_recognize_any_error_of_a_reader_is_its_files_only(counting, talk, tmp_path, capsys, monkeypatch, fails_after):
    def read_chunks(path, rate, seconds, note, read=audio.read_chunks):
        heard = 0.0
        for chunk in read(path, rate, seconds, note):
            if path == bad and heard >= fails_after:
                raise OSError(5, "Input/output error")
            heard += len(chunk) / rate
            yield chunk

    monkeypatch.setattr(audio, "read_chunks", read_chunks)
    bad = write(tmp_path / "bad.wav", bursts(0.5, 0.5), subtype="FLOAT")
    out, err = run(talk, bad, talk, status=1, capsys=capsys)
    text = [f"{bad}\tONE"] if fails_after else []
    assert out == [f"{talk}\tONE TWO ONE TWO THREE", *text, f"{talk}\tONE TWO ONE TWO THREE"]
    assert len(err) == 1 and f"`{bad}` cannot be read (OSError(5, 'Input/output error'))" in err[0]


@pytest.mark.parametrize("stream_option", [[], ["--stream"]])
def test_recognize_names_with_line_feeds_and_tabs_stay_on_one_line(counting, tmp_path, capsys, stream_option):
    path, missing = write(tmp_path / "a\tb\nc.wav", bursts(0.5, 0.5)), f"{tmp_path}/no\nfile"
    out, err = run(*stream_option, path, missing, status=1, capsys=capsys)
    assert len(out) == len(err) == 1
    fields = out[0].split("\t")
    assert (fields[0], fields[-1]) == (f"{tmp_path}/a\\tb\\nc.wav", "ONE") and "no\\nfile` must" in err[0]
    assert json.loads(run("--json", path, capsys=capsys)[0][0])["file"] == path


def test_recognize_a_name_that_is_not_utf8(export, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    soundfile.write(tmp_path / "x.wav", bursts(0.5, 0.5), RATE)
    os.rename(tmp_path / "x.wav", path)
    command = [sys.executable, "-m", "twopass_kd.bin.recognize", str(export), path]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(path + b"\t")


@pytest.mark.parametrize("stream_option", [[], ["--stream"]])
def test_recognize_says_why_there_is_no_text(counting, tmp_path, capsys, stream_option):
    files = {
        write(tmp_path / "none.wav", np.zeros(0)): "no samples",
        write(tmp_path / "zeros.wav", np.zeros(4 * RATE)): "all zeros (digital silence)",
        write(tmp_path / "short.wav", bursts(0.04)): "too short: 0.040 s, and the model sees 0.07 s at a time",
        write(tmp_path / "quiet.wav", bursts(3.0), subtype="FLOAT"): "nothing was recognised in 3.0 s",
    }
    out, err = run(*stream_option, *files, capsys=capsys)
    err.remove(f"{tmp_path / 'zeros.wav'}: nothing was recognised in 4.0 s")
    assert [(line.split("\t")[0], line.split("\t")[-1]) for line in out] == [(f, "") for f in files]
    assert sorted(err) == sorted(f"{f}: {reason}" for f, reason in files.items())


def test_recognize_digital_silence_says_nothing_whatever_the_model_makes_of_it(counting, tmp_path, capsys, monkeypatch):
    def hallucinate(self, encoder_out, decoder_out):
        return np.eye(self.info.vocab_size, dtype=np.float32)[np.full(len(encoder_out), 4)] * 8

    monkeypatch.setattr(CountingRuntime, "join", hallucinate)
    zeros, faint = write(tmp_path / "zeros.wav", np.zeros(RATE)), write(tmp_path / "faint.wav", bursts(1.0))
    assert run("--stream", faint, capsys=capsys)[0][0].split("\t")[2].startswith("TWO TWO")
    assert run(zeros, capsys=capsys)[0] == [f"{zeros}\t"]
    assert [(e["event"], e["text"], e["nbest"]) for e in events(zeros, capsys=capsys)] == [("final", "", [])]


@pytest.mark.parametrize("name", ["x.wav", "x.flac"])
def test_recognize_a_file_cut_short(counting, tmp_path, capsys, name):
    path = write(tmp_path / name, bursts(0.5, 0.5, 3.0, 0.5))
    data = Path(path).read_bytes()
    fraction = 0.45 if name == "x.wav" else 0.6
    Path(path).write_bytes(data[: int(len(data) * fraction)])
    out, err = run(path, capsys=capsys)
    assert out == [f"{path}\tONE TWO"] and len(err) == 1 and err[0].startswith(f"{path}: cut short")


def test_recognize_keeps_what_came_before_a_sample_that_is_not_finite(counting, tmp_path, capsys):
    x = bursts(0.5, 0.5, 1.0, 0.5)
    x[2 * RATE] = np.nan
    out, err = run(write(tmp_path / "nan.wav", x, subtype="FLOAT"), status=1, capsys=capsys)
    assert [line.split("\t")[1] for line in out] == ["ONE TWO"] and "sample 32000 (2.000 s) is nan" in err[0]


class Stdin:
    def __init__(self, raw):
        self.buffer = io.BufferedReader(raw)


def test_recognize_standard_input(counting, capsys, monkeypatch):
    data = (bursts(0.5, 0.5, 0.5) * 32767).astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdin", Stdin(io.BytesIO(data)))
    assert [e["text"] for e in events("-", capsys=capsys)] == ["ONE", "ONE TWO", "ONE TWO"]


class InterruptedMicrophone(io.RawIOBase):
    """Gives what it has, then Ctrl-C is pressed."""

    def __init__(self, data):
        self.data = data

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.data:
            raise KeyboardInterrupt
        part, self.data = self.data[: len(buffer)], self.data[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


@pytest.mark.parametrize("stream_option", [[], ["--stream"]])
def test_recognize_ctrl_c_prints_what_was_recognised_so_far(counting, talk, capsys, monkeypatch, stream_option):
    data = (bursts(0.5, 0.5, 0.5) * 32767).astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdin", Stdin(InterruptedMicrophone(data)))
    out, err = run(*stream_option, "-", talk, status=130, capsys=capsys)
    assert out[0].split("\t")[0] == "-" and out[0].split("\t")[-1] == "ONE TWO"
    assert err[0].startswith("-: interrupted after 2.")


# A real export, in a process of its own


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """The export folder of a tiny random model, with a second pass."""
    folder = tmp_path_factory.mktemp("export")
    model = tiny_model(seed=3)
    pieces = ["<blk>", "<sos/eos>", "<unk>", *("\u2581" + c for c in "ABCDEFGHI")]
    tokens = "".join(f"{piece} {i}\n" for i, piece in enumerate(pieces))
    (folder / "tokens.txt").write_text(tokens, encoding="utf-8")
    digest = hashlib.sha256(tokens.encode()).hexdigest()
    common = {"export_id": "tiny", "precision": "float32", "tokens_sha256": digest}
    how = {"beam": "4", "nbest": "4"}
    encoder = {**common, **chunk_metadata(model, 4, RATE), **how, "second_pass": "1"}
    second = {**common, **how, "rescore_weight": "0.5", "length_reward": "0"}
    export_onnx(model, True, folder, dict(encoder=encoder, decoder=common, joiner=common, attention_decoder=second))
    assert len(pieces) == VOCAB_SIZE
    return folder


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "k2", "lhotse", "sentencepiece", "pydantic"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from twopass_kd.bin.recognize import main
sys.exit(main())
"""


def command(*args):
    return [sys.executable, "-c", BLOCKED, *map(str, args)]


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}


def process(*args, **kwargs):
    return subprocess.run(command(*args), capture_output=True, text=True, env=environment(), timeout=60, **kwargs)


def test_recognize_export_needs_no_torch(export, talk):
    done = process(export, talk, talk, "--stream", "--json")
    assert done.returncode == 0 and done.stderr == ""
    finals = [e for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "final"]
    assert any(e["text"] and e["nbest"][0]["attention_log_prob"] is not None for e in finals)
    texts = [line.split("\t")[1] for line in process(export, talk, talk).stdout.splitlines()]
    assert texts == [" ".join(e["text"] for e in finals[: len(finals) // 2])] * 2


def test_recognize_checkpoint_without_torch_is_explained(tmp_path, talk):
    (tmp_path / "final.pt").touch()
    done = process(tmp_path / "final.pt", talk)
    assert done.returncode == 1 and done.stdout == ""
    assert "torch is blocked; install it, or take an export folder, which needs no PyTorch" in done.stderr


def test_recognize_help_needs_no_model_and_shows_examples(capsys):
    with pytest.raises(SystemExit) as e:
        recognize.main(["--help"])
    out = capsys.readouterr().out
    assert e.value.code == 0 and "arecord" in out and "exit status" in out and "%(prog)s" not in out


def test_recognize_names_what_is_wrong_with_an_export_folder(export, talk, tmp_path, capsys):
    def error(*args):
        assert recognize.main(list(map(str, args))) == 1
        out, err = capsys.readouterr()
        assert out == ""
        return err

    def broken(name, change):
        folder = tmp_path / f"broken-{name}"
        folder.mkdir()
        for path in export.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        change(folder)
        return error(folder, talk)

    assert "joiner.onnx must exist" in broken("missing", lambda f: (f / "joiner.onnx").unlink())
    assert "attention_decoder.onnx must exist" in broken("second", lambda f: (f / "attention_decoder.onnx").unlink())
    swap = broken("swapped", lambda f: (f / "decoder.onnx").write_bytes((f / "joiner.onnx").read_bytes()))
    assert "decoder.onnx has no metadata" in swap
    cut = broken("cut", lambda f: (f / "encoder.onnx").write_bytes((f / "encoder.onnx").read_bytes()[:999]))
    assert "encoder.onnx is cut short or no ONNX model" in cut

    def rename_a_token(folder):
        tokens = (folder / "tokens.txt").read_text(encoding="utf-8")
        (folder / "tokens.txt").write_text(tokens.replace("\u2581A 3", "\u2581Z 3"), encoding="utf-8")

    assert "is not of the same export as tokens.txt" in broken("tokens", rename_a_token)
    assert "tokens.txt has 11 tokens, but the model 12" in broken(
        "fewer", lambda f: (f / "tokens.txt").write_text("".join(open(f / "tokens.txt").readlines()[:-1]))
    )
    nowhere = error(tmp_path / "nowhere", talk)
    assert "must be an export folder (stage 10 makes exp/<conf>/export/<system>) or a checkpoint" in nowhere
    assert "encoder.int8.onnx must exist" in error(export, talk, "--int8")


@pytest.mark.parametrize(
    "part, key, value",
    [
        ("encoder", "beam", "many"),
        ("encoder", "beam", "0"),
        ("encoder", "sampling_rate", "0"),
        ("encoder", "decode_chunk_len", "-4"),
        ("encoder", "T", "5"),
        ("encoder", "num_features", "40"),
        ("encoder", "rnn_hidden_size", "1"),
        ("attention_decoder", "rescore_weight", "nan"),
    ],
)
def test_recognize_names_an_export_folder_whose_metadata_were_edited(export, talk, tmp_path, capsys, part, key, value):
    folder = tmp_path / "export"
    shutil.copytree(export, folder)
    model = onnx.load(str(folder / f"{part}.onnx"))
    next(entry for entry in model.metadata_props if entry.key == key).value = value
    onnx.save(model, str(folder / f"{part}.onnx"))
    assert recognize.main([str(folder), talk]) == 1
    assert f"{folder} has metadata that were edited" in capsys.readouterr().err


def test_recognize_broken_pipe_is_quiet(export, talk):
    p = subprocess.Popen(
        command(export, *[talk] * 30), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    p.stdout.close()
    assert p.stderr.read() == "" and p.wait(60) == 141
    p.stderr.close()


@pytest.mark.parametrize("sigint", [signal.SIG_DFL, signal.SIG_IGN], ids=["foreground", "background of a script"])
def test_recognize_live_audio_until_ctrl_c(export, sigint):
    p = subprocess.Popen(
        command(export, "--stream", "--json", "-"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, sigint),
    )  # fmt: skip
    p.stdin.write((bursts(0.2, 0.2, 0.2) * 32767).astype("<i2").tobytes())
    p.stdin.flush()
    if not select.select([p.stdout], [], [], 20)[0]:
        p.kill()
        pytest.fail("no event came while the audio had not ended")
    first = json.loads(p.stdout.readline())
    assert first["event"] == "partial" and first["time"] < 1.3
    time.sleep(0.3)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and b"Traceback" not in err and b"-: interrupted after" in err
    assert json.loads(out.splitlines()[-1])["event"] == "final"
