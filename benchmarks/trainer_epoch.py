"""An epoch over a cache in a process of its own: `trainer_epoch.py CACHE HEAD BYTES` prints images/s and memory as JSON.

BYTES are the budget of the tokens; with 0 they are loaded into memory.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from featcache.probing.inputs.data import load_split
from featcache.probing.protocols.protocol import PAPER, Member, batch_size
from featcache.probing.requests.jobs import jobs
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.training.process import flush_denormals, keep_freed_memory
from featcache.probing.training.trainer import fit_members
from featcache.store.reading.reader import open_cache

MEMBERS = (Member(1e-2, 1e-2, 0.0), Member(1e-3, 1e-2, 0.0))


def anonymous() -> int:
    """Bytes of anonymous memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def main(directory: Path, head: str, memory: int) -> dict[str, float]:
    """Train two members for an epoch; memory counts from before the tokens are there."""
    cache = open_cache(directory)
    job = jobs(cache, ProbeRequest(heads=(head,), layers="all", tokens="cls+ap"))[-1]
    torch.randn(512, 512) @ torch.randn(512, 512)  # threads and libraries are no part of it
    before = anonymous()
    data = load_split(cache, "train", job.selection, "cpu", memory or None)
    if data.streamed != bool(memory):
        raise ValueError(f"{memory} bytes: streamed is {data.streamed}")
    number, grown = data.tokens.num_samples, [anonymous() - before]
    started = time.perf_counter()
    fit_members(
        job.build,
        data.tokens,
        torch.from_numpy(data.labels),
        torch.arange(number),
        MEMBERS,
        protocol=replace(PAPER, min_epochs=1, min_steps=1),
        # Streaming wants three batches in its budget, an eighth of the split.
        batch_size=min(batch_size(number, PAPER), number // 48),
        seed=0,
        num_classes=int(data.labels.max()) + 1,
        on_step=lambda updated: grown.append(anonymous() - before),
    )
    return {"images/s": number / (time.perf_counter() - started), "bytes": max(grown)}


if __name__ == "__main__":
    flush_denormals()
    keep_freed_memory()
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
