"""Slow, plain versions of the losses for one utterance, straight from their definitions, for tests only.

They share nothing with the package or with k2: Python loops, autograd, float64, and sums over all paths
where those can be listed.
"""

import itertools

import torch
from torch import Tensor


def transducer_loss(log_probs: Tensor, y: list[int], blank_id: int = 0) -> Tensor:
    """Minus log of the sum over all paths, by the forward recursion. log_probs (T, S + 1, V)."""
    num_frames, num_positions, _ = log_probs.shape
    alpha: dict[tuple[int, int], Tensor] = {}
    for t in range(num_frames):
        for u in range(num_positions):
            came_from = []
            if t > 0:
                came_from.append(alpha[t - 1, u] + log_probs[t - 1, u, blank_id])
            if u > 0:
                came_from.append(alpha[t, u - 1] + log_probs[t, u - 1, y[u - 1]])
            alpha[t, u] = torch.logsumexp(torch.stack(came_from), 0) if came_from else log_probs.new_zeros(())
    return -(alpha[num_frames - 1, num_positions - 1] + log_probs[num_frames - 1, num_positions - 1, blank_id])


def paths(num_frames: int, num_symbols: int) -> list[list[tuple[int, int, bool]]]:
    """Every path through the lattice as its arcs (t, u, is_label); the last arc is a blank."""
    found = []
    arcs = num_frames + num_symbols
    for where in itertools.combinations(range(arcs - 1), num_symbols):
        t = u = 0
        path = []
        for i in range(arcs):
            path.append((t, u, i in where))
            if i in where:
                u += 1
            else:
                t += 1
        found.append(path)
    return found


def modified_paths(num_frames: int, num_symbols: int) -> list[list[tuple[int, int, bool]]]:
    """The same for k2's "modified" topology: every arc, label or blank, takes a frame."""
    found = []
    for where in itertools.combinations(range(num_frames), num_symbols):
        found.append([(t, sum(w < t for w in where), t in where) for t in range(num_frames)])
    return found


def loss_on_band(
    log_probs: Tensor, y: list[int], band: set[tuple[int, int]], rnnt_type: str = "regular", blank_id: int = 0
) -> Tensor:
    """Minus log of the sum over the paths inside the band, {(t, u)}."""
    num_frames, num_positions, _ = log_probs.shape
    scores = [
        sum(log_probs[t, u, y[u] if is_label else blank_id] for t, u, is_label in path)
        for path in (paths if rnnt_type == "regular" else modified_paths)(num_frames, num_positions - 1)
        if all((t, u) in band for t, u, _ in path)
    ]
    return -torch.logsumexp(torch.stack(scores), 0)


def smoothed_log_probs(am: Tensor, lm: Tensor, lm_only_scale: float) -> Tensor:
    """(T, S + 1, V) arc scores of the smoothed simple joiner: am (T, V), lm (S + 1, V)."""
    both = (am.unsqueeze(1) + lm.unsqueeze(0)).log_softmax(-1)
    return (1 - lm_only_scale) * both + lm_only_scale * lm.log_softmax(-1).unsqueeze(0)


def kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of two vectors of logits, without the factor temperature**2."""
    p = torch.exp(student_logits / temperature) / torch.exp(student_logits / temperature).sum()
    q = torch.exp(teacher_logits / temperature) / torch.exp(teacher_logits / temperature).sum()
    return (q * (q.log() - p.log())).sum()


def transducer_kd(student: Tensor, teacher: Tensor, temperature: float, nodes: Tensor | None = None) -> Tensor:
    """The KD loss of one utterance; logits (T, S + 1, V), `nodes` (T, S + 1) 0 or 1, None for the whole lattice."""
    num_frames, num_positions, _ = student.shape
    values = [
        kl(student[t, u], teacher[t, u], temperature) * temperature**2
        for t in range(num_frames)
        for u in range(num_positions)
        if nodes is None or nodes[t, u]
    ]
    return sum(values) / len(values) * (num_frames + num_positions - 1)


def ctc(log_probs: Tensor, y: list[int], blank_id: int = 0) -> Tensor:
    """CTC loss of one utterance by listing every frame labelling; log_probs (T, V)."""
    num_frames, num_tokens = log_probs.shape
    scores = []
    for labelling in itertools.product(range(num_tokens), repeat=num_frames):
        merged = [v for v, _ in itertools.groupby(labelling)]
        if [v for v in merged if v != blank_id] == y:
            scores.append(sum(log_probs[t, v] for t, v in enumerate(labelling)))
    return -torch.logsumexp(torch.stack(scores), 0)


def smoothed_cross_entropy(logits: Tensor, target: int, label_smoothing: float) -> Tensor:
    """Cross-entropy against (1 - s) * one-hot + s / V."""
    log_p = (torch.exp(logits) / torch.exp(logits).sum()).log()
    wanted = torch.full_like(log_p, label_smoothing / len(log_p))
    wanted[target] += 1 - label_smoothing
    return -(wanted * log_p).sum()
