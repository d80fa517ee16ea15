"""Features of several groups of tokens side by side: the pooled tokens and statistics over the patches."""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from featcache.store.reading.chunks import Array
from featcache.store.token_groups import POOLED, STATISTICS


def runs_by_group(kinds: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Divide token kinds into runs of neighbors of one group: statistics are groups of one token each, the others are pooled."""
    named = groupby(kinds, key=lambda kind: kind if kind in STATISTICS else POOLED)
    return [(group, list(run)) for group, run in named]


def join_groups(
    kinds: Sequence[str], read: Callable[[str, Sequence[str]], Array], out: Array | None
) -> Array:
    """Read every group and put its tokens where they were asked for.

    Args:
        kinds: token kinds, of several groups.
        read: called with a group and kinds of it; returns ``[B, L, K, D]``.
        out: buffer ``[B, L, K, D]`` for all kinds; made if not given.

    Raises:
        ValueError: `out` has another shape.
    """
    parts = [read(group, run) for group, run in runs_by_group(kinds)]
    if out is None:
        return np.concatenate(parts, axis=2)
    shape = (*parts[0].shape[:2], len(kinds), parts[0].shape[3])
    if out.shape != shape:
        raise ValueError(f"out must have shape {list(shape)}, got {list(out.shape)}")
    return np.concatenate(parts, axis=2, out=out)
