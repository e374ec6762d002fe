"""Which rank a failed training is blamed on."""

from types import SimpleNamespace

from twopass_kd.training.launch import _cause


def test_a_killed_rank_is_the_cause_also_where_another_was_seen_first():
    lost_its_peer, killed = SimpleNamespace(exitcode=1, timestamp=5), SimpleNamespace(exitcode=-9, timestamp=5)
    assert _cause({0: lost_its_peer, 1: killed}) == (1, killed)
    first = SimpleNamespace(exitcode=1, timestamp=4)
    assert _cause({0: lost_its_peer, 1: first}) == (1, first)
