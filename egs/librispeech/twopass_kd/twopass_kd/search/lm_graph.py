"""The decoding graph LG: the words of an n-gram language model (ARPA), spelt in tokens. For `fast_beam_search`.

The steps are those of icefall's `local/compile_lg.py`; what is left of them is an acceptor over tokens, since words are
read off the tokens. Words that the ARPA file does not have cannot be recognised with it.
"""

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from twopass_kd.config.schema import ConfigError
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.files.read import read_lines
from twopass_kd.search.arpa import BACKOFF, normalise_arpa
from twopass_kd.search.graphs import end_with, import_k2, pack_arcs

_MARKS = ("<eps>", "<s>", "</s>", BACKOFF)  # words of the graph's own
_NO_WORDS = (*_MARKS, "<unk>", "<UNK>")


def train_arpa(texts: Path, order: int, arpa: Path, tokenizer: Tokenizer) -> None:
    """Train a Kneser-Ney n-gram (kaldingram's, which is SRILM's) and write it as an ARPA file.

    Args:
      texts: a sentence a line, UTF-8; empty lines are passed over.
      order: longest n-gram.
      arpa: the file to write.
      tokenizer: whose normal form the words get.
    Raises:
      ConfigError: if the text cannot be read or has no words, naming file and line.
    """
    from kaldingram.train import NgramCounts

    remedy = "run stage 2 again, or give `decode.arpa`"
    lines = tokenizer.normalize(read_lines(texts, str(texts), remedy, ConfigError))
    sentences = [words for words in ([w for w in line.split() if w not in _MARKS] for line in lines) if words]
    if not sentences:
        raise ConfigError(f"{texts} must have words to train an n-gram model on; {remedy}")
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars do not ask for a terminal
        counts = NgramCounts(order)
        for words in sentences:  # not its own reader, which of a unigram's lines takes the first word only
            counts.add_raw_counts_from_line(" ".join(words))
        counts.cal_discounting_constants()
        counts.cal_f()
        counts.cal_bow()
        with arpa.open("w", encoding="utf-8", newline="\n") as f:
            counts.print_as_arpa(fout=f)


def spell(words: dict[str, int], tokenizer: Tokenizer) -> dict[int, list[int]]:
    """The lexicon: number of a word -> its tokens. Words with letters that the tokens do not have are left out."""
    names = [word for word in words if word not in _NO_WORDS]
    spelt = dict(zip(names, tokenizer.encode(names)))
    left_out = [word for word, tokens in spelt.items() if tokenizer.unk_id in tokens]
    if left_out:
        logging.warning("LG: %d of %d words cannot be spelt, e.g. %s", len(left_out), len(names), left_out[0])
    first: dict[tuple, int] = {}
    for word, tokens in spelt.items():
        if tokenizer.unk_id not in tokens:
            first.setdefault(tuple(tokens), words[word])  # of words that are spelt alike, one is enough
    return {word: list(tokens) for tokens, word in first.items()}


def compile_lg(arpa: Path, tokenizer: Tokenizer) -> Tensor:
    """Compose lexicon and n-gram to one acceptor over tokens.

    Args:
      arpa: the language model.
    Returns:
      Its arcs for `DecodingGraph`; scores are log-probs (natural) of the model, pushed towards the beginning of words.
    Raises:
      ConfigError: if the file is no ARPA file (`normalise_arpa`), or none of its words can be spelt.
    """
    k2 = import_k2("an LG graph")
    with tempfile.TemporaryDirectory() as folder:
        table, clean = Path(folder) / "words.txt", Path(folder) / "G.arpa"
        normalise_arpa(arpa, clean)
        # In a process of its own, since it aborts where a file is malformed.
        command = [sys.executable, "-m", "kaldilm", f"--disambig-symbol={BACKOFF}", f"--write-symbol-table={table}"]
        done = subprocess.run([*command, str(clean)], capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if line.startswith(("[E]", "[F]"))), done.stderr)
            raise ConfigError(f"`decode.arpa` ({arpa}) must be an n-gram model in ARPA format: {said.strip()[-200:]}")
        lines = (line.split("\t") for line in read_lines(table, str(table), "free disk space"))
        words = {word: int(number) for word, number in lines}
    grammar = k2.Fsa.from_openfst(done.stdout, acceptor=False)
    del grammar.aux_labels

    backoff = tokenizer.vocab_size  # a label after the tokens
    spelt = spell(words, tokenizer)
    if not spelt:
        raise ConfigError(f"`decode.arpa` ({arpa}) must have words that {tokenizer.vocab_size} tokens can spell")
    arcs, num_states = [], 1
    for word, tokens in spelt.items():
        states = [0, *range(num_states, num_states + len(tokens) - 1), 0]
        num_states += len(tokens) - 1
        for i, token in enumerate(tokens):
            arcs.append((states[i], states[i + 1], token, word if i == 0 else 0))
    arcs += [(0, 0, backoff, words[BACKOFF]), (0, num_states, -1, -1)]
    arcs.sort()
    lexicon = k2.Fsa(pack_arcs([(*arc[:3], 0.0) for arc in arcs]))
    lexicon.aux_labels = torch.tensor([arc[3] for arc in arcs], dtype=torch.int32)

    graph = k2.connect(k2.compose(k2.arc_sort(lexicon), k2.arc_sort(grammar)))
    del graph.aux_labels
    graph = k2.connect(k2.determinize(graph, k2.DeterminizeWeightPushingType.kLogWeightPushing))
    labels = graph.labels.clone()
    labels[labels == backoff] = 0
    graph.labels = labels
    graph = k2.arc_sort(k2.connect(k2.remove_epsilon(graph)))
    return end_with(graph.arcs.values(), tokenizer.unk_id)


def load_lg(graph_dir: Path, tokenizer: Tokenizer, arpa: Path | None, order: int) -> Tensor:
    """The arcs of LG, from `graph_dir` where they are there and still right, else made and kept there.

    Args:
      tokenizer: in its folder is transcript_words.txt (icefall has it too), which the n-gram learns from.
      arpa: a language model of the user's; None: train one.
      order: of the n-gram that is trained.
    Raises:
      ConfigError: if a file is missing, or a package that makes the graph.
    """
    source = tokenizer.lang_dir / "transcript_words.txt" if arpa is None else arpa
    if not source.is_file():
        remedy = "run stage 2, which makes it, or give `decode.arpa`" if arpa is None else "correct `decode.arpa`"
        raise ConfigError(f"{source} is missing, from which the graph LG is made; {remedy}")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    key = [tokenizer.digest(), tokenizer.normalization, digest, "arpa" if arpa else order]
    path = graph_dir / "LG.pt"
    arcs = _read_kept(path, key)
    if arcs is not None:
        return arcs
    for needed in ["kaldilm"] + (["kaldingram"] if arpa is None else []):
        if importlib.util.find_spec(needed) is None:
            raise ConfigError(
                f"an LG graph needs {needed}; install requirements/base.txt, or take it out of decode.searches"
            )
    graph_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".LG-", dir=graph_dir) as folder:
        made = Path(folder)
        if arpa is None:
            train_arpa(source, order, made / "G.arpa", tokenizer)
        arcs = compile_lg(arpa or made / "G.arpa", tokenizer)
        torch.save({"key": key, "arcs": arcs}, made / "LG.pt")
        for file in made.iterdir():
            os.replace(file, graph_dir / file.name)
    logging.info("%s: %d arcs, from %s", path, len(arcs), source)
    return arcs


def _read_kept(path: Path, key: list[object]) -> Tensor | None:
    """The arcs that were kept; None where there are none, they are of something else or cut short."""
    try:
        kept = torch.load(path, weights_only=True)
        return kept["arcs"] if kept["key"] == key else None
    except FileNotFoundError:
        return None
    except Exception as e:  # zipfile, pickle and torch errors have no common base
        logging.warning("%s cannot be read (%s); making it again", path, type(e).__name__)
        return None
