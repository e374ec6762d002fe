import pytest

import download_corpus
import get_corpus
import synthesize_corpus
from run_sh import TINY

MUSAN = ["corpus.musan=true"]


@pytest.mark.parametrize("settings, called", [
    ([], ["synthesize"]),
    (MUSAN, ["synthesize", "download"]),
    (["corpus.kind=librispeech"], ["download"]),
    (["corpus.kind=mini_librispeech", *MUSAN], ["download"]),
    (["corpus.kind=folder"], []),
    (["corpus.kind=folder", *MUSAN], ["download"]),
])  # fmt: skip
def test_get_corpus_does_what_its_kind_asks_for(tmp_path, monkeypatch, settings, called):
    for part in ("train-clean", "dev-clean", "test-clean", "test-other"):
        (tmp_path / part).mkdir()
    calls = []
    monkeypatch.setattr(synthesize_corpus, "main", lambda argv: calls.append("synthesize"))
    monkeypatch.setattr(download_corpus, "main", lambda argv: calls.append("download"))
    assert not get_corpus.main(["--conf", str(TINY), "--corpus-dir", str(tmp_path), *settings])
    assert calls == called


def test_get_corpus_folder_without_its_parts_is_an_error(tmp_path, capsys):
    assert get_corpus.main(["--conf", str(TINY), "--corpus-dir", str(tmp_path), "corpus.kind=folder"]) == 1
    assert f"`--corpus-dir` ({tmp_path}) must have a folder train-clean" in capsys.readouterr().err
