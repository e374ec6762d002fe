"""The one place that imports the transducer recursions and the pruning of the lattice."""

try:
    from k2 import (
        get_rnnt_logprobs_pruned,
        get_rnnt_prune_ranges,
        mutual_information_recursion,
        rnnt_loss_pruned,
    )
except ImportError as e:
    raise ImportError(
        f"the transducer losses need k2, which does not import here ({e}); "
        "install the k2 wheel that was built for this Python and this torch (`make demo` does), or activate the "
        "environment that has it"
    ) from e

__all__ = [
    "get_rnnt_logprobs_pruned",
    "get_rnnt_prune_ranges",
    "mutual_information_recursion",
    "rnnt_loss_pruned",
]
