"""Small lattices at the edges of what is allowed, for the tests of the recursions."""

import torch

TYPES = ("modified", "regular")
INF = float("inf")
# Padded frames and symbols, and of each utterance begin_symbol, begin_frame, end_symbol, end_frame.
EDGES = {
    "lengths differ": (5, 3, [[0, 0, 3, 5], [0, 0, 1, 4], [0, 0, 2, 2]]),
    "no symbols": (4, 2, [[0, 0, 2, 4], [0, 0, 0, 3], [0, 0, 0, 1]]),
    "one frame": (2, 1, [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 2]]),
    "a symbol in each frame": (3, 3, [[0, 0, 3, 3], [0, 0, 2, 2], [0, 0, 1, 1]]),
    "lengths alike": (4, 2, [[0, 0, 2, 4], [0, 0, 2, 4]]),
    "one utterance": (4, 2, [[0, 0, 2, 4]]),
    "one frame, one symbol": (1, 1, [[0, 0, 1, 1]]),
    "all are shorter than the padding": (6, 4, [[0, 0, 2, 4], [0, 0, 1, 3]]),
}
LATER = {"begins later": (6, 4, [[1, 2, 3, 6], [0, 1, 2, 4], [2, 0, 2, 3], [0, 0, 4, 6]])}


def lattice(rnnt_type, boundary, T, S, dtype=torch.float64, padding=None, seed=0):
    """Random arcs of a batch; outside the boundary `padding`, or more of the same."""
    g = torch.Generator().manual_seed(seed)
    boundary, more = torch.as_tensor(boundary), int(rnnt_type == "regular")
    B = len(boundary)
    px = torch.randn(B, S, T + more, generator=g, dtype=dtype) - 1
    py = torch.randn(B, S + 1, T, generator=g, dtype=dtype) - 1
    for b, (s0, t0, s1, t1) in enumerate(boundary.tolist()):
        if more:
            px[b, :, t1] = -INF
        if padding is not None:
            outside_px, outside_py = torch.ones_like(px[b], dtype=bool), torch.ones_like(py[b], dtype=bool)
            outside_px[s0:s1, t0 : t1 + more] = False
            outside_py[s0 : s1 + 1, t0:t1] = False
            px[b].masked_fill_(outside_px, padding)
            py[b].masked_fill_(outside_py, padding)
    return px, py, boundary
