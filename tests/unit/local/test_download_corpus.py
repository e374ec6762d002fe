"""Tests of local/download_corpus.py against a local server with small archives in LibriSpeech's layout."""

import hashlib
import io
import socket
import tarfile

import pytest
from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH

import find_utterances
from download_corpus import ARCHIVES, archives_of, download_corpus, main, unpack_archive
from prepare_manifests import musan_dir
from range_server import RangeHandler, serve
from small_corpus import TINY_YAML, small_config
from twopass_kd.config.schema import ConfigError

PARTS = ["train-clean-5", "dev-clean-2"]
CONFIG = [
    "corpus.kind=mini_librispeech",
    "corpus.train_parts=[train-clean-5]",
    "corpus.dev_parts=[dev-clean-2]",
    "corpus.test_parts=[dev-clean-2]",
]


def musan_archive():
    """An archive in MUSAN's layout."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for part in ("music/fma", "speech/librivox", "noise/free-sound"):
            tar.addfile(tarfile.TarInfo(f"musan/{part}/{part.replace('/', '-')}-0000.wav"))
            tar.addfile(tarfile.TarInfo(f"musan/{part}/LICENSE"))
    return buffer.getvalue()


@pytest.fixture()
def server():
    files, requests = {"/17/musan.tar.gz": musan_archive()}, []
    for part in PARTS:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            info = tarfile.TarInfo(f"LibriSpeech/{part}/1/2/1-2.trans.txt")
            info.size = 20
            tar.addfile(info, io.BytesIO(b"1-2-0000 HELLO WORLD"))
            tar.addfile(tarfile.TarInfo("LibriSpeech/LICENSE.TXT"))
        files[f"/31/{part}.tar.gz"] = buffer.getvalue()
    with serve(files, requests) as url:
        yield files, requests, url


def sums(files):
    return {path.split("/")[2].removesuffix(".tar.gz"): hashlib.md5(data).hexdigest() for path, data in files.items()}


def test_download_corpus_unpacks_marks_and_does_nothing_the_second_time(server, tmp_path, capsys):
    files, requests, url = server
    corpus_dir = tmp_path / "with space" / "LibriSpeech"
    cfg = small_config(*CONFIG)
    assert download_corpus(cfg, corpus_dir, url, sums(files)) == PARTS
    assert (corpus_dir / "dev-clean-2" / "1" / "2" / "1-2.trans.txt").read_text() == "1-2-0000 HELLO WORLD"
    assert (corpus_dir / "train-clean-5" / ".completed").is_file()
    assert {p.name for p in corpus_dir.iterdir()} == {*PARTS, "LICENSE.TXT"}
    requests.clear()
    capsys.readouterr()
    assert download_corpus(cfg, corpus_dir, url, sums(files)) == [] and requests == []
    assert capsys.readouterr().out.splitlines() == [f"{part}: already complete" for part in PARTS]


def test_download_corpus_goes_on_where_it_stopped_and_uses_archives_put_there(server, tmp_path):
    files, requests, url = server
    (tmp_path / "train-clean-5.tar.gz").write_bytes(files["/31/train-clean-5.tar.gz"][:50])
    (tmp_path / "dev-clean-2.tar.gz").write_bytes(files["/31/dev-clean-2.tar.gz"])
    download_corpus(small_config(*CONFIG), tmp_path / "LibriSpeech", url, sums(files))
    assert requests == [("/31/train-clean-5.tar.gz", 50)]
    assert all((tmp_path / "LibriSpeech" / part / "1").is_dir() for part in PARTS)


def test_download_corpus_connections_that_end_early_are_no_damage(server, tmp_path, monkeypatch):
    """The end of a connection used to be taken for the end of the archive, which was then removed as damaged."""
    files, requests, url = server
    monkeypatch.setattr(RangeHandler, "longest", 80)
    assert download_corpus(small_config(*CONFIG), tmp_path / "LibriSpeech", url, sums(files)) == PARTS
    assert [start for path, start in requests if "train" in path] == [0, 80, 160]
    assert state(tmp_path / "LibriSpeech") == {*PARTS, "LICENSE.TXT"}


def test_download_corpus_server_that_sends_no_more_keeps_what_arrived(server, tmp_path, monkeypatch):
    files, requests, url = server
    (tmp_path / "train-clean-5.tar.gz").write_bytes(files["/31/train-clean-5.tar.gz"][:50])
    monkeypatch.setattr(RangeHandler, "longest", 0)
    with pytest.raises(ConnectionError, match="train-clean-5.*ended after 50 of .* bytes.*run again to go on"):
        download_corpus(small_config(*CONFIG), tmp_path / "LibriSpeech", url, sums(files))
    monkeypatch.setattr(RangeHandler, "longest", 10**9)
    requests.clear()
    download_corpus(small_config(*CONFIG), tmp_path / "LibriSpeech", url, sums(files))
    assert requests[0] == ("/31/train-clean-5.tar.gz", 50)


MUSAN = ["corpus.musan=true"]


def test_download_corpus_musan_goes_beside_the_corpus(server, tmp_path, capsys):
    files, requests, url = server
    (tmp_path / "musan.tar.gz").write_bytes(files["/17/musan.tar.gz"][:99])
    cfg, corpus_dir = small_config(*CONFIG, *MUSAN), tmp_path / "LibriSpeech"
    with pytest.raises(ValueError, match="musan.tar.gz` must have the MD5 sum 0000"):
        download_corpus(cfg, corpus_dir, url, {**sums(files), "musan": "0" * 32})
    assert not (tmp_path / "musan.tar.gz").exists() and not (tmp_path / "musan").exists()
    (tmp_path / "musan.tar.gz").write_bytes(files["/17/musan.tar.gz"][:99])
    requests.clear()
    assert download_corpus(cfg, corpus_dir, url, sums(files)) == ["musan"] and requests == [("/17/musan.tar.gz", 99)]
    assert (tmp_path / "musan" / "music" / "fma" / "music-fma-0000.wav").is_file()
    assert state(tmp_path / "musan") == {".completed", "music", "speech", "noise"}
    assert download_corpus(cfg, corpus_dir, url, sums(files)) == []


def test_download_corpus_musan_for_a_corpus_of_any_kind_and_name(server, tmp_path):
    files, requests, url = server
    assert download_corpus(small_config(*MUSAN), tmp_path / "mine", url, sums(files)) == ["musan"]
    assert [path for path, _ in requests] == ["/17/musan.tar.gz"]
    (tmp_path / "musan" / ".completed").unlink()  # as if unpacked by hand
    assert download_corpus(small_config(*MUSAN), tmp_path / "mine", "http://127.0.0.1:9") == []


def state(folder):
    return {path.name for path in folder.iterdir()}


def test_download_corpus_damaged_archive_is_removed(server, tmp_path):
    files, _, url = server
    wrong = {**sums(files), "train-clean-5": "0" * 32}
    with pytest.raises(ValueError, match="must have the MD5 sum 0000.*run again"):
        download_corpus(small_config(*CONFIG), tmp_path / "LibriSpeech", url, wrong)
    assert not (tmp_path / "train-clean-5.tar.gz").exists() and not (tmp_path / "LibriSpeech").exists()


def test_download_corpus_without_network_says_what_to_do(tmp_path):
    with socket.socket() as s:  # a port on which nobody listens
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}"
    with pytest.raises(ConnectionError, match="Without network, download train-clean-5.tar.gz, dev-clean-2.tar.gz"):
        download_corpus(small_config(*CONFIG), tmp_path / "LibriSpeech", url)
    assert not (tmp_path / "train-clean-5.tar.gz").exists()


def test_main_wrong_kind_part_or_folder(tmp_path, capsys):
    conf = ["--conf", str(TINY_YAML)]
    assert main([*conf, "--corpus-dir", str(tmp_path / "LibriSpeech")]) == 1
    assert "`corpus.kind` (mini) must be librispeech or mini_librispeech" in capsys.readouterr().err
    assert main([*conf, "--corpus-dir", str(tmp_path / "here"), *CONFIG]) == 1
    assert "must hold train-clean-5, dev-clean-2, or end in /LibriSpeech" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="train-claen must be among|train-claen"):
        download_corpus(small_config(*CONFIG, "corpus.train_parts=[train-claen]"), tmp_path / "LibriSpeech")


def test_md5_known_for_every_part_of_lhotses_recipe():
    assert set(ARCHIVES) == {*LIBRISPEECH, *MINI_LIBRISPEECH, "musan"}
    assert all(len(md5) == 32 for md5, _ in ARCHIVES.values())


def test_download_corpus_takes_parts_unpacked_by_hand_as_they_are(server, tmp_path, capsys):
    """They used to be deleted, since they lack Lhotse's marker, and downloaded again."""
    files, requests, url = server
    corpus_dir = tmp_path / "LibriSpeech"
    mine = corpus_dir / "dev-clean-2" / "1" / "2" / "1-2.trans.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("1-2-0000 MINE")
    (corpus_dir / "train-clean-5").mkdir()  # an empty one is nobody's
    assert download_corpus(small_config(*CONFIG), corpus_dir, url, sums(files)) == ["train-clean-5"]
    assert mine.read_text() == "1-2-0000 MINE" and not (corpus_dir / "dev-clean-2" / ".completed").exists()
    assert [path for path, _ in requests] == ["/31/train-clean-5.tar.gz"]
    assert capsys.readouterr().out.splitlines() == [
        "train-clean-5: to be downloaded",
        "dev-clean-2: found there, used as it is (1 of the archive's 1089 utterances)",
    ]


def test_utterances_of_all_parts_are_known():
    """1,519 and 1,089 for Mini LibriSpeech; LibriSpeech has 292,367."""
    assert {name for name, (_, count) in ARCHIVES.items() if count} == {*LIBRISPEECH, *MINI_LIBRISPEECH}
    assert sum(ARCHIVES[part][1] for part in LIBRISPEECH) == 292_367
    assert [ARCHIVES[part][1] for part in ("train-clean-5", "dev-clean-2")] == [1519, 1089]


def test_download_corpus_parts_that_are_links_or_hold_links_are_found(tmp_path, capsys):
    """They were to be downloaded again, or an error: links were not entered."""
    corpus_dir, elsewhere = tmp_path / "LibriSpeech", tmp_path / "elsewhere"
    (elsewhere / "2").mkdir(parents=True)
    (elsewhere / "2" / "1-2.TRANS.TXT").write_text("".join(f"1-2-{n:04d} A\n" for n in range(1519)))
    (corpus_dir / "train-clean-5").mkdir(parents=True)
    (corpus_dir / "train-clean-5" / "1").symlink_to(elsewhere)
    (corpus_dir / "dev-clean-2").symlink_to("train-clean-5")
    for part in ("music", "noise"):
        (tmp_path / "musan" / part).mkdir(parents=True)
    (tmp_path / "musan" / "music" / "a").symlink_to(elsewhere)
    (elsewhere / "A.WAV").touch()
    cfg = small_config(*CONFIG, *MUSAN)
    assert download_corpus(cfg, f"{corpus_dir}/", base_url="http://127.0.0.1:9") == []
    assert capsys.readouterr().out.splitlines() == [
        "train-clean-5: found there, used as it is",
        "dev-clean-2: found there, used as it is (1519 of the archive's 1089 utterances)",
        "musan: found there, used as it is",
    ]


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_download_corpus_something_else_instead_of_the_corpus_folder(server, tmp_path, kind):
    files, requests, url = server
    corpus_dir = tmp_path / "LibriSpeech"
    corpus_dir.touch() if kind == "file" else corpus_dir.symlink_to(tmp_path / "unmounted")
    with pytest.raises(ConfigError, match="LibriSpeech\\) must be a folder, not a file or a broken link"):
        download_corpus(small_config(*CONFIG), corpus_dir, url, sums(files))
    assert requests == []


def test_musan_is_beside_the_corpus_also_where_that_is_named_from_inside(tmp_path, monkeypatch):
    (tmp_path / "LibriSpeech" / "train").mkdir(parents=True)
    for folder, name in (("LibriSpeech", "."), ("LibriSpeech/train", "..")):
        monkeypatch.chdir(tmp_path / folder)
        assert musan_dir(name) == tmp_path / "musan"


def test_main_folder_that_cannot_be_read_is_an_error(tmp_path, capsys, monkeypatch):
    part = tmp_path / "LibriSpeech" / "train-clean-5"
    part.mkdir(parents=True)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(find_utterances.os, "scandir", refuse)
    assert main(["--conf", str(TINY_YAML), "--corpus-dir", str(part.parent), *CONFIG]) == 1
    assert f"`{part}` must be a folder that can be read (Permission denied)" in capsys.readouterr().err


def test_download_corpus_all_found_needs_no_network_and_no_special_name(tmp_path):
    for part in PARTS:
        (tmp_path / "my corpus" / part / "1" / "2").mkdir(parents=True)
        (tmp_path / "my corpus" / part / "1" / "2" / "1-2.trans.txt").write_text("1-2-0000 MINE")
    assert download_corpus(small_config(*CONFIG), tmp_path / "my corpus", base_url="http://127.0.0.1:9") == []


@pytest.mark.parametrize("kind", ["audio only", "file", "dangling link"])
def test_download_corpus_something_else_of_that_name_is_an_error_before_downloading(server, tmp_path, kind):
    files, requests, url = server
    part = tmp_path / "LibriSpeech" / "train-clean-5"
    part.parent.mkdir()
    if kind == "audio only":
        part.mkdir()
        (part / "1.flac").touch()
    elif kind == "file":
        part.touch()
    else:
        part.symlink_to(tmp_path / "unmounted")
    with pytest.raises(ConfigError, match="train-clean-5` must hold transcripts .* move it away"):
        download_corpus(small_config(*CONFIG), tmp_path / "LibriSpeech", url, sums(files))
    assert requests == [] and (part.is_symlink() or part.exists())


def test_unpack_archive_interrupted_leaves_nothing_under_the_parts_name(server, tmp_path):
    archive = archives_of(small_config(*CONFIG), tmp_path / "LibriSpeech")[0]
    path = tmp_path / "train-clean-5.tar.gz"
    path.write_bytes(server[0]["/31/train-clean-5.tar.gz"][:60])
    with pytest.raises((EOFError, tarfile.ReadError)):
        unpack_archive(path, archive)
    assert not (tmp_path / "LibriSpeech" / "train-clean-5").exists()
    path.write_bytes(server[0]["/31/train-clean-5.tar.gz"])
    unpack_archive(path, archive)
    assert sorted(p.name for p in (tmp_path / "LibriSpeech").iterdir()) == ["LICENSE.TXT", "train-clean-5"]
