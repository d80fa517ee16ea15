"""Small caches with every group of tokens, written through the real writer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featcache.probing.inputs.selection import Selection
from featcache.probing.requests.jobs import jobs
from featcache.probing.requests.request import ProbeRequest
from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.planning import TokenArray, plan_arrays
from featcache.store.reading.reader import Cache
from featcache.store.token_groups import GRIDS, STATISTICS, token_names
from support.caches import Content, make_content, make_spec, write_cache

BLOCKS, WIDTH = 4, 16
COUNTS = {
    "registers": 2,
    "patches": 6,
    **{grid: side * side for grid, side in GRIDS.items()},
    **dict.fromkeys(STATISTICS, 1),
}
PATCHED = ("1", "3")
"""Blocks that hold patches; the final norm does too."""


def rich_plan(
    samples: Mapping[str, int] | None = None,
    dtype: str = "float16",
    groups: Mapping[str, tuple[str, ...]] | None = None,
    num_classes: int = 3,
    taps: Mapping[str, int] | None = None,
    blocks: Sequence[str] | None = None,
) -> Plan:
    """Class token and average of 4 blocks, and further groups: by default registers and grid2 of all, patches of some.

    Args:
        samples: rows per split.
        dtype: stored type.
        groups: the blocks that hold each group besides the pooled one; the final norm always does.
        num_classes: labels go round them.
        blocks: those that hold pooled tokens; by default all.
        taps: width of the pooled tokens at every tap; by default those of norm2 alone.
    """
    every = tuple(str(block) for block in range(BLOCKS))
    groups = {"registers": every, "patches": PATCHED, "grid2": every} if groups is None else groups
    held = every if blocks is None else tuple(blocks)
    arrays = [
        *(
            TokenArray(tap, "pooled", held, BLOCKS, ("cls", "ap"), width)
            for tap, width in (taps or {"norm2": WIDTH}).items()
            if held
        ),
        TokenArray("final", "pooled", ("final",), 1, ("cls", "ap"), WIDTH),
    ]
    for group, holding in groups.items():
        names = token_names(group, COUNTS[group])
        if holding:
            arrays.append(TokenArray("norm2", group, holding, BLOCKS, names, WIDTH))
        arrays.append(TokenArray("final", group, ("final",), 1, names, WIDTH))
    splits = {
        name: plan_arrays(name, rows, arrays, WIDTH, dtype, 12)
        for name, rows in (samples or {"train": 300, "test": 40}).items()
    }
    classes = tuple(f"class {label}" for label in range(num_classes))
    return Plan(make_spec(BLOCKS, WIDTH, dtype), Inventory(splits, classes), 32)


def make_rich_content(plan: Plan) -> Content:
    """Random content of a plan whose arrays do not hold every layer."""
    content = make_content(plan)
    for inventory in plan.inventory.splits.values():
        columns = content[inventory.name]
        for array in inventory.arrays.values():
            if array.layers:  # of the layers that are not held, nothing is written
                columns[array.name] = columns[array.name][:, : len(array.layers)]
    return content


def rich_cache(
    folder: Path, plan: Plan, skipped: Mapping[str, list[int]] | None = None
) -> tuple[Cache, Content]:
    """Write random content, without the rows that are `skipped` in a split: they are marked invalid, and hold NaN."""
    content = make_rich_content(plan)
    for split, rows in (skipped or {}).items():
        columns = content[split]
        columns["valid"][rows] = False
        for array in plan.inventory.splits[split].arrays.values():
            if array.layers:
                columns[array.name][rows] = 0xFFFF if array.dtype == "bfloat16" else np.nan
    return write_cache(folder, plan, content), content


def select(cache: Cache, layers: str, tokens: str) -> Selection:
    """What a probe that is asked for these sees."""
    return jobs(cache, ProbeRequest(heads=("attentive",), layers=layers, tokens=tokens))[-1].selection


def expected_tokens(content: Content, plan: Plan, split: str, places: list[tuple[str, str]]) -> Tensor:
    """The tokens at `places` as they were written, ``[N, T, D]`` float32; patches and the like count up within a layer."""
    met: dict[tuple[str, str], int] = {}
    tokens = []
    for layer, kind in places:
        pooled = kind in ("cls", "ap")
        tap = "final" if layer == "final" else "norm2"
        name = tap if pooled else f"{tap}_{kind}"
        array, held = content[split][name], plan.inventory.splits[split].arrays[name].layers
        index = ("cls", "ap").index(kind) if pooled else met.get((layer, kind), 0)
        met[layer, kind] = met.get((layer, kind), 0) + 1
        tokens.append(array[:, held.index(layer), index])
    stacked = np.stack(tokens, axis=1)
    if plan.spec.dtype == "bfloat16":
        return torch.from_numpy(stacked.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(stacked).float()
