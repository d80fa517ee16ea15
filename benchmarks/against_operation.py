"""One operation of `against.py`, timed inside of the process: prints seconds. Uses what every version of featcache has."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from inspect import signature
from io import StringIO
from pathlib import Path
from statistics import median

import numpy as np

BATCH = 2048
MODEL = "timm:test_vit.r160_in1k"
SHOTS = 100
"""Samples of each class that the heads are trained on."""
IMAGES = 1500


def command(*arguments: object) -> None:
    """Run the command line in this process.

    Raises:
        RuntimeError: the command failed.
    """
    from featcache.cli import main

    sys.argv = ["featcache", *map(str, arguments)]
    said = StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(said.getvalue()) from None


def timed(function: Callable[[], object], runs: int = 1) -> float:
    """Return the median of the seconds that calls take."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def gather(cache: Path, scratch: Path) -> float:
    """Gather random rows of all layers."""
    import featcache

    split, rng = featcache.open(cache)["train"], np.random.default_rng(0)
    out = split.gather(np.arange(min(BATCH, split.num_samples)), split.layers, split.tokens)

    def run() -> None:
        rows = rng.permutation(split.num_samples)[:BATCH]
        split.gather(rows, split.layers, split.tokens, out=out)

    timed(run, 3)
    return timed(run, 31)


def small_gather(cache: Path, scratch: Path) -> float:
    """Gather a few random rows of all layers, many times."""
    import featcache

    split, rng = featcache.open(cache)["train"], np.random.default_rng(0)

    def run() -> None:
        for _ in range(100):
            split.gather(rng.integers(0, split.num_samples, 16), split.layers, split.tokens)

    timed(run)
    return timed(run, 7)


def epoch(cache: Path, scratch: Path) -> float:
    """Shuffle an epoch within a budget of memory that holds a quarter of the cache."""
    import featcache

    split = featcache.open(cache)["train"]
    memory = split.num_samples * len(split.layers) * 2 * 384 * 2 // 4
    return timed(
        lambda: [len(rows) for rows, _ in split.batches(256, split.layers, split.tokens, 0, memory)], 3
    )


def load(cache: Path, scratch: Path) -> float:
    """Read all rows of all layers."""
    import featcache

    split = featcache.open(cache)["train"]
    return timed(lambda: split.load(split.layers, split.tokens), 3)


def verify(cache: Path, scratch: Path) -> float:
    """Hold every byte to its digest."""
    return timed(lambda: command("verify", cache), 3)


def push(cache: Path, scratch: Path) -> float:
    """Push to a shared folder."""
    (scratch / "remote").mkdir(parents=True)
    return timed(lambda: command("push", cache, scratch / "remote"))


def pull(cache: Path, scratch: Path) -> float:
    """Pull from a shared folder."""
    (scratch / "remote").mkdir(parents=True)
    command("push", cache, scratch / "remote")
    address = f"file://{scratch / 'remote' / cache.parent.name / cache.name}"
    return timed(lambda: command("pull", address, "--root", scratch / "mine"))


def train(cache: Path, scratch: Path) -> float:
    """Sweep and train the attentive head on `SHOTS` samples of each of three classes of all layers."""
    return _probe("attentive", cache, scratch)


def solve(cache: Path, scratch: Path) -> float:
    """Solve logistic regression on `SHOTS` samples of each of three classes of all layers, for all penalties."""
    return _probe("logreg", cache, scratch)


def _probe(head: str, cache: Path, scratch: Path) -> float:
    arguments = ("probe", "--cache", cache, "--head", head, "--protocol", "quick", "--shots", SHOTS)
    import torch  # noqa: F401 - takes seconds to import

    import featcache

    # Versions that fit further baselines are asked for what the others fit.
    known = signature(featcache.probe).parameters if callable(featcache.probe) else {}
    few = ("--baselines", "trained") if "baselines" in known else ()
    return timed(lambda: command(*arguments, *few, "--out", scratch / "results"))


def write_weights(path: Path) -> Path:
    """Write random weights of timm's smallest vision transformer."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


def extraction(scratch: Path, images: Path) -> tuple[object, ...]:
    """Return the command that extracts the images with the smallest backbone, so that all but the pass shows."""
    weights = scratch.parent / "weights.safetensors"
    if not weights.exists():
        write_weights(weights)
    names = ("--model", MODEL, "--weights", weights, "--dataset", f"imagefolder:{images}")
    return (
        "extract",
        *names,
        "--precision",
        "fp32",
        "--batch-size",
        64,
        "--workers",
        1,
        "--root",
        scratch / "root",
    )


def write_images(folder: Path, count: int) -> Path:
    """Write JPEG images of two classes, once."""
    from PIL import Image

    if not folder.exists():
        rng = np.random.default_rng(0)
        for row in range(count):
            path = folder / f"class-{row % 2}" / f"{row:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (240, 320, 3), np.uint8)).save(path)
    return folder


def extract(cache: Path, scratch: Path) -> float:
    """Extract 1,500 JPEGs."""
    images = write_images(scratch.parent / "images", IMAGES)
    arguments = extraction(scratch, images)
    import timm  # noqa: F401 - takes seconds to import, as torch does

    return timed(lambda: command(*arguments))


def answer(cache: Path, scratch: Path) -> float:
    """Find that 1,500 images are cached already."""
    images = write_images(scratch.parent / "images", IMAGES)
    arguments = extraction(scratch, images)
    command(*arguments)
    return timed(lambda: command(*arguments), 5)


OPERATIONS = (gather, small_gather, epoch, load, verify, push, pull, train, solve, extract, answer)


def main(arguments: Sequence[str]) -> None:
    """Run the operation that is named first, on the cache that is named second, in the scratch folder named third."""
    name, cache, scratch = arguments[0], Path(arguments[1]), Path(arguments[2])
    operation = {function.__name__: function for function in OPERATIONS}[name]
    try:
        print(operation(cache, scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
