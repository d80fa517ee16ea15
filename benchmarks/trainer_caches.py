"""Heads trained on caches: from a memory map against from memory, and a whole table on a GPU."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from timing import Document

from featcache.probing.requests.request import ProbeRequest
from featcache.probing.run import probe
from featcache.store.journal import Plan
from featcache.store.reading.reader import Cache, open_cache
from featcache.store.writing.writer import CacheWriter
from support.caches import make_content, make_plan

POOL = 2048
"""Rows of random values that fill a cache, over and over."""
ALLOWANCE = 300_000_000
"""Bytes that a streamed training may take besides its budget."""
CPU = torch.device("cpu")
TOY_PROTOCOL = "toy"
"""A protocol of a few updates, which only the benchmarks have."""
LAYER_SETS = ("last", "mid+last", "quarters", "all")


def write_repeated(directory: Path, plan: Plan) -> Cache:
    """Write a complete cache of random values that repeat."""
    samples = dict.fromkeys(plan.inventory.splits, POOL)
    backbone = plan.spec.backbone
    small = make_plan(
        samples,
        num_layers=backbone.num_layers,
        width=backbone.width,
        num_classes=len(plan.inventory.class_names),
    )
    content = make_content(small)
    with CacheWriter(directory, plan) as writer:
        while (block := writer.claim()) is not None:
            rows = torch.arange(block.block.start, block.block.stop).numpy() % POOL
            while block.rows < len(rows):
                part = rows[block.rows : block.rows + plan.batch_size]
                values = content[block.block.split]
                block.append({name: array[part] for name, array in values.items()})
            writer.commit(block)
        writer.finish({"model_names": ["made"], "dataset_names": ["made"], "completed_at": 1.0}, "# made\n")
    return open_cache(directory)


def bench_streaming(toy: bool) -> Document:
    """An epoch of two members on tokens streamed from the map with an eighth of their size, against in memory."""
    # All of these layers, which are 12 with the final one, two tokens each: 906 MB in the large cache.
    rows, width, runs = (8192, 32, 1) if toy else (49_152, 384, 3)
    size = rows * 12 * 2 * width * 2
    document: Document = {"MB of tokens": round(size / 1e6), "MB of budget": round(size / 8e6)}
    with tempfile.TemporaryDirectory() as name:
        plan = make_plan({"train": rows, "test": 256}, num_layers=12, width=width, num_classes=100)
        cache = write_repeated(Path(name) / "cache", plan).directory
        for head in ("linear", "attentive"):
            streamed, loaded = [], []
            for _ in range(runs):
                streamed.append(_epoch(cache, head, size // 8))
                loaded.append(_epoch(cache, head, 0))
            rates = [median(run["images/s"] for run in side) for side in (streamed, loaded)]
            grown = [max(run["bytes"] for run in side) for side in (streamed, loaded)]
            document[head] = {
                "images/s": round(rates[0]),
                "other_images/s": round(rates[1]),
                "times_faster": round(rates[0] / rates[1], 2),
                "runs": runs,
                "MB of growth": round(grown[0] / 1e6),
                "other_MB of growth": round(grown[1] / 1e6),
                "within budget + 300 MB": grown[0] <= size // 8 + ALLOWANCE,
            }
    return document


def _epoch(cache: Path, head: str, memory: int) -> dict[str, float]:
    script = Path(__file__).with_name("trainer_epoch.py")
    command = [sys.executable, str(script), str(cache), head, str(memory)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(answer.stdout)
    return result


def bench_gpu(toy: bool) -> Document | str:
    """The ten heads of the paper's table, full sweeps, at CIFAR-100's size for a ViT-L/14 on a GPU."""
    if toy:
        return paper_table({"train": 200, "test": 100}, 8, 32, 10, CPU, TOY_PROTOCOL, num_sets=1)
    if not torch.cuda.is_available():
        return "not measured: no CUDA device"
    return paper_table({"train": 50_000, "test": 10_000}, 24, 1024, 100, torch.device("cuda"), "paper")


def paper_table(
    rows: dict[str, int],
    num_layers: int,
    width: int,
    num_classes: int,
    device: torch.device,
    protocol: str,
    num_sets: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Document:
    """Seconds of every head of the paper's table, on a cache of random values.

    Args:
        rows: samples of every split.
        num_layers: blocks of the backbone.
        width: its width.
        num_classes: classes.
        device: where to train.
        protocol: name of the protocol, or `TOY_PROTOCOL`.
        num_sets: layer sets of the table; all by default.
        stop: called between heads of different layers; the rest is left out once it is true.
    """
    asked = [(("linear", "attentive"), layers, "cls+ap") for layers in LAYER_SETS[:num_sets]]
    if num_sets is None:
        asked.append((("attentive",), "all", "cls"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if protocol == TOY_PROTOCOL:
            path = folder / "toy.toml"
            path.write_text('base = "quick"\nmin_epochs = 1\nmin_steps = 4\n')
            protocol = str(path)
        plan = make_plan(rows, num_layers=num_layers, width=width, num_classes=num_classes, batch_size=128)
        cache = write_repeated(folder / "cache", plan)
        seconds: dict[str, float] = {}
        left_out: list[str] = []
        started = time.perf_counter()
        for heads, layers, tokens in asked:
            if stop():
                left_out.append(f"{layers}, {tokens}")
                continue
            request = ProbeRequest(
                heads=heads,
                layers=layers,
                tokens=tokens,
                protocol=protocol,
                baselines="trained",
                out=folder / "results",
            )
            for row in probe(cache, request, device=device):
                seconds[f"{row.head}, {row.layers}, {'+'.join(row.tokens)}"] = round(row.seconds, 1)
        total = time.perf_counter() - started
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "heads": len(seconds),
        "seconds": round(total, 1),
        "seconds a head": seconds,
        **({"left out for want of time": left_out} if left_out else {}),
    }
