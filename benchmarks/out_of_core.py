"""Solved heads whose features do not fit into memory: `.venv/bin/python benchmarks/out_of_core.py`.

Every measurement runs in a process of its own, so that its peak memory is known. Features are made up like those of `solver.py`: classes in a few
dozen latent directions, channels of very unequal variance. Rates of matrix products are measured in the same process, before and after.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import Document

from featcache.probing.heads import get_head
from featcache.probing.inputs.data import load_split
from featcache.probing.inputs.features import ResidentFeatures, StreamedFeatures
from featcache.probing.inputs.selection import Part, Selection
from featcache.probing.scoring.tasks import SingleLabel
from featcache.probing.solver.logistic import GRID, Targets, penalty_from_c
from featcache.probing.solver.streamed_objective import StreamedObjective
from featcache.probing.solver.streamed_path import StreamedFitting, StreamedLimits, solve_streamed_path
from featcache.probing.training.process import flush_denormals, keep_freed_memory
from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.layers import FINAL
from featcache.store.planning import TokenArray, plan_arrays
from featcache.store.reading.reader import open_cache
from featcache.store.writing.writer import CacheWriter

CPU = torch.device("cpu")
LATENTS = 256
BLOCK_ROWS = 2048
RATE_RUNS = 12
PENALTIES = 7
C, OTHER_TOLERANCE, OTHER_ITERATIONS = 1.0, 1e-4, 300
IMAGENET = (1_281_167, 1024, 1000)
PATH_ROWS = 128_000
LONG = (100_000, 1024, 100)
DECOMPOSED = (50_000, 4608, 10)
TOY = (600, 16, 6)


def make_cache(directory: Path, samples: int, width: int, classes: int) -> None:
    """Write a cache of class tokens of the last layer, float16, block by block."""
    arrays = [TokenArray("final", "pooled", (FINAL,), 1, ("cls",), width)]
    splits = {
        name: plan_arrays(name, rows, arrays, width, "float16", 12)
        for name, rows in (("train", samples), ("test", classes))
    }
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from support.caches import make_spec

    plan = Plan(make_spec(1, width), Inventory(splits, tuple(map(str, range(classes)))), 256)
    random = np.random.default_rng(0)
    centers = 0.5 * random.standard_normal((classes, LATENTS), np.float32)
    maps = random.standard_normal((LATENTS, width), np.float32) / LATENTS**0.5
    scale = np.arange(1, width + 1, dtype=np.float32) ** -0.5
    mean = 2 * random.standard_normal(width, np.float32)
    with CacheWriter(directory, plan) as writer:
        while (block := writer.claim()) is not None:
            start, stop = block.block.start, block.block.stop
            own = np.random.default_rng([start, len(block.block.split)])
            labels = np.arange(start, stop) % classes
            latents = centers[labels] + own.standard_normal((len(labels), LATENTS), np.float32)
            noise = 0.5 * own.standard_normal((len(labels), width), np.float32)
            tokens = ((mean + latents @ maps + noise) * scale).astype(np.float16)
            for first in range(0, len(labels), plan.batch_size):
                rows = slice(first, first + plan.batch_size)
                ids = [f"{start + row}".encode().ljust(12, b"\0") for row in range(len(labels))[rows]]
                block.append(
                    {
                        "final": tokens[rows, None, None],
                        "label": labels[rows],
                        "sample_id": np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 12),
                        "valid": np.ones(len(ids), bool),
                    }
                )
            writer.commit(block)
        writer.finish({"model_names": ["made"], "dataset_names": ["made"], "completed_at": 1.0}, "# made\n")


def fitting_of(directory: Path, rows: int | None) -> StreamedFitting:
    """Prepare the fit to the first rows of train, read block by block."""
    cache = open_cache(directory)
    selection = Selection("last", (FINAL,), ("cls",), (Part("pooled", (FINAL,), ("cls",), "final"),))
    train = load_split(cache, "train", selection, CPU, 1)
    chosen = torch.arange(len(train.labels) if rows is None else rows)
    features = StreamedFeatures(train.tokens, chosen, CPU, BLOCK_ROWS)
    targets = Targets.balanced(torch.from_numpy(train.labels)[chosen], int(train.labels.max()) + 1, CPU)
    return StreamedFitting.of(features, targets)


def matrix_rates(width: int, classes: int) -> tuple[float, float]:
    """Return the float32 operations of the two products of a block, without anything else, a second and a second of processor time."""
    block, weight = torch.randn(BLOCK_ROWS, width), torch.randn(classes, width)
    residual = torch.randn(BLOCK_ROWS, classes)
    best, began = np.inf, time.process_time()
    for _ in range(RATE_RUNS):
        started = time.perf_counter()
        block @ weight.T
        residual.T @ block
        best = min(best, time.perf_counter() - started)
    operations = 4 * BLOCK_ROWS * width * classes
    return operations / best, RATE_RUNS * operations / (time.process_time() - began)


def gradient(directory: Path, *_: str) -> Document:
    """One objective and gradient at all rows.

    The ratio by processor time is what counts where other programs run: they take seconds from both, but not at the same moments.
    """
    fitting = fitting_of(directory, None)
    objective, features = fitting.objective, fitting.objective.features
    classes = int(objective.loss.targets.max()) + 1
    params = torch.randn(1, classes, features.num_features + 1).double()
    penalties = torch.tensor([1e-3], dtype=torch.float64)
    matrix_rates(features.num_features, classes)
    before = matrix_rates(features.num_features, classes)
    started, began = time.perf_counter(), time.process_time()
    objective.evaluate(params, penalties, torch.float32)
    seconds, processor = time.perf_counter() - started, time.process_time() - began
    after = matrix_rates(features.num_features, classes)
    operations = 4 * features.num_samples * features.num_features * classes
    return {
        "seconds": round(seconds, 2),
        "gigaflops": round(operations / seconds / 1e9, 1),
        "matrix gigaflops before and after": [round(rate / 1e9, 1) for rate, _ in (before, after)],
        "of the matrix rate": round(2 * operations / seconds / (before[0] + after[0]), 2),
        "of the matrix rate, by processor time": round(
            2 * operations / processor / (before[1] + after[1]), 2
        ),
    }


class Stopwatch:
    """Seconds, and seconds of processor time, since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> Document:
        """Return both; where other programs run, the second one is what counts."""
        return {
            "seconds": round(time.perf_counter() - self._wall, 2),
            "processor seconds": round(time.process_time() - self._processor, 2),
        }


def path(directory: Path, rows: str) -> Document:
    """A path of penalties, certified, on the first rows."""
    passes, evaluate = [0], StreamedObjective.evaluate

    def counted(self: StreamedObjective, *args: object, **options: object) -> object:
        passes[0] += 1
        return evaluate(self, *args, **options)  # type: ignore[arg-type]

    StreamedObjective.evaluate = counted  # type: ignore[method-assign, assignment]
    watch = Stopwatch()
    fitting = fitting_of(directory, int(rows))
    spread = float(fitting.preconditioner.variances.sum())
    penalties = [factor * spread for factor in GRID[:: len(GRID) // (PENALTIES - 1)]]
    found = solve_streamed_path(fitting, penalties, StreamedLimits())
    StreamedObjective.evaluate = evaluate  # type: ignore[method-assign]
    return {
        "samples": int(rows),
        **watch.read(),
        "passes": passes[0],
        "penalties": len(penalties),
        "of which certified": sum(each.converged for each in found.certificates),
        "iterations": [each.iterations for each in found.certificates],
        "relative suboptimality, at most": max(
            each.suboptimality / each.objective for each in found.certificates
        ),
    }


def streamed_penalty(directory: Path, target: str) -> Document:
    """The time from the cache to an objective that is no larger than another one."""
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        watch = Stopwatch()
        fitting = fitting_of(directory, None)
        penalty = penalty_from_c(C, fitting.objective.features.num_samples)
        (found,) = solve_streamed_path(fitting, [penalty], StreamedLimits(tolerance)).certificates
        figures = watch.read()
        if found.objective <= float(target):
            break
    return {
        **figures,
        "objective": found.objective,
        "iterations": found.iterations,
        "relative suboptimality, at most": found.suboptimality / found.objective,
    }


def sklearn_penalty(directory: Path, *_: str) -> Document:
    """scikit-learn's L-BFGS on all features in memory, float32."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    objective = fitting_of(directory, None).objective
    features = torch.cat([block for _, block in objective.features.blocks()])
    labels = objective.loss.targets
    penalty = penalty_from_c(C, len(labels))
    other = LogisticRegression(C=C, tol=OTHER_TOLERANCE, max_iter=OTHER_ITERATIONS)
    watch = Stopwatch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        other.fit(features.numpy(), labels.numpy())
    figures = watch.read()
    weight = torch.from_numpy(other.coef_).double()
    bias = torch.from_numpy(other.intercept_).double() + weight @ objective.mean
    params = torch.cat([weight, bias[:, None]], 1)[None]
    at = objective.evaluate(params, torch.tensor([penalty], dtype=torch.float64), torch.float64)
    return {
        **figures,
        "objective": float(at.objective),
        "iterations": int(other.n_iter_[0]),
    }


def closed_form(directory: Path, head: str, how: str) -> Document:
    """A closed-form head for all its settings, from features in memory or read block by block."""
    objective = fitting_of(directory, None).objective
    head_class, features = get_head(head).load(), objective.features
    labels, task = objective.loss.targets, SingleLabel(int(objective.loss.targets.max()) + 1)
    settings, size = head_class.grid(features.num_samples), (1, features.num_features)
    source = features
    if how == "memory":
        source = ResidentFeatures(torch.cat([block for _, block in features.blocks()]))
    watch = Stopwatch()
    fitted = head_class.fit_blocks(source, labels, size, task, settings)
    return {**watch.read(), "norm": float(fitted.classifier.weight.detach().double().norm())}


MEASUREMENTS: dict[str, Callable[..., Document]] = {
    each.__name__: each for each in (gradient, path, streamed_penalty, sklearn_penalty, closed_form)
}


def alone(toy: bool, name: str, directory: Path, *arguments: object) -> Document:
    """Run a measurement in a process of its own, and add its peak memory; at toy size, in this process."""
    if toy:
        return MEASUREMENTS[name](directory, *map(str, arguments))
    command = [sys.executable, "-W", "ignore", __file__, name, str(directory), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    document: Document = json.loads(done.stdout)
    return document


def ratio_of(other: Document, ours: Document) -> float:
    """Return how many times less processor time the second of two measurements took."""
    theirs, own = (float(str(each["processor seconds"])) for each in (other, ours))
    return round(theirs / max(own, 0.01), 2)


def bench_imagenet(directory: Path, toy: bool) -> Document:
    """One gradient at the size of ImageNet, and a path on a part of the rows."""
    size = TOY if toy else IMAGENET
    make_cache(directory, *size)
    return {
        f"one gradient, {size[0]:,} x {size[1]:,}, {size[2]:,} classes": alone(toy, "gradient", directory),
        f"a path of {PENALTIES} penalties": alone(toy, "path", directory, 300 if toy else PATH_ROWS),
    }


def bench_sklearn(directory: Path, toy: bool) -> Document:
    """One penalty against scikit-learn, to an objective that is no larger."""
    size = TOY if toy else LONG
    make_cache(directory, *size)
    other = alone(toy, "sklearn_penalty", directory)
    ours = alone(toy, "streamed_penalty", directory, other["objective"])
    ratio = {"times_faster": ratio_of(other, ours)}
    return {
        f"C = {C}, {size[0]:,} x {size[1]:,}, {size[2]:,} classes": {
            "streamed": ours,
            "scikit-learn in memory": other,
            **ratio,
        }
    }


def bench_closed_form(directory: Path, toy: bool) -> Document:
    """Ridge and lda, block by block against in memory."""
    size = TOY if toy else DECOMPOSED
    make_cache(directory, *size)
    document: Document = {}
    for head in ("ridge", "lda"):
        runs = {how: alone(toy, "closed_form", directory, head, how) for how in ("memory", "blocks")}
        document[f"{head}, {size[0]:,} x {size[1]:,}"] = {
            **runs,
            "speed of blocks": ratio_of(runs["memory"], runs["blocks"]),
        }
    return document


PARTS = {"imagenet": bench_imagenet, "sklearn": bench_sklearn, "closed-form": bench_closed_form}


def bench_out_of_core(toy: bool = False, parts: tuple[str, ...] = tuple(PARTS)) -> Document:
    """Run some parts, each on a cache of its own that is deleted afterwards."""
    document: Document = {}
    if toy:
        torch.set_num_threads(1)
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            document |= PARTS[part](Path(folder) / "cache", toy)
    return document


def main() -> None:
    """Print the rows, or the figures of one measurement."""
    flush_denormals()
    if len(sys.argv) > 2 and sys.argv[1] in MEASUREMENTS:
        keep_freed_memory()
        document = MEASUREMENTS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({**document, "peak GB": round(1024 * peak / 1e9, 2)}))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all if none is named")
    parser.add_argument("--toy", action="store_true", help="toy sizes: only whether it runs")
    arguments = parser.parse_args()
    print(json.dumps(bench_out_of_core(arguments.toy, tuple(arguments.parts or PARTS)), indent=1))


if __name__ == "__main__":
    main()
