"""What an extraction costs, against the best that its parts allow: the demo's DINOv2 ViT-S/14 on the demo's JPEGs.

All rows or some of them: `.venv/bin/python benchmarks/extraction.py [speed layers ...]`, after `make demo`.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from extraction_gpu import bench_gpu
from extraction_setup import Bench, FirstRows, photos, toy_backbone
from PIL.Image import Image
from timing import Document, side_by_side

from featcache.devices.precision import forward_context
from featcache.extraction.backbones import load_backbone
from featcache.extraction.decoding.rgb import to_rgb
from featcache.extraction.forward_pass.capacity import default_workers
from featcache.extraction.forward_pass.extractors import Forward
from featcache.extraction.forward_pass.forward import FeatureExtractor
from featcache.extraction.models.names import resolve_model
from featcache.extraction.requests.feature_selection import FeatureSelection
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.base import Source
from featcache.store.journal import Plan
from featcache.store.machine import usable_cpus
from featcache.store.planning import TokenArray

REPO = Path(__file__).parent.parent
WEIGHTS, IMAGES = REPO / ".demo" / "dinov2_vits14.safetensors", REPO / ".demo" / "textile"
MODEL = "dinov2-vit-s-14"
MEGABYTE = 2**20
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """Rows and runs of the comparisons; with fewer the figures say nothing."""

    rows: int
    loop_rows: int
    pass_rows: int
    memory_rows: tuple[int, int]
    runs: int
    batch: int


FULL = Size(320, 224, 96, (2_000, 20_000), 9, 16)
TOY = Size(40, 16, 8, (48, 96), 1, 8)


def bench_extraction(rows: Sequence[str] = (), toy: bool = False) -> Document:
    """The rows named, or all but, in toy size, the compiled pass; those of the CPU need the demo's files."""
    size = TOY if toy else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made: dict[str, Callable[[], Document | str]] = {
            "memory": lambda: bench_memory(size),
            "gpu": lambda: bench_gpu(folder, toy),
        }
        has_demo = WEIGHTS.is_file() and IMAGES.is_dir()
        if toy or has_demo:
            bench = _toy(folder) if toy else _demo(folder)
            made |= {row: _bound(function, bench, size) for row, function in _ON_CPU.items()}
        chosen = [
            row for row in _TITLES if row in made and (row in rows if rows else row not in _left_out(toy))
        ]
        document: Document = {_TITLES[row]: made[row]() for row in chosen}
        if not toy and not has_demo:
            document["not measured"] = "the demo's weights and images are not there; `make demo` fetches them"
    return document


def _left_out(toy: bool) -> Sequence[str]:
    """Rows that run only where they are named: compiling takes longer than all else in toy size."""
    return ("compile",) if toy else ()


def _bound(
    function: Callable[[Bench, Size], Document], bench: Bench, size: Size
) -> Callable[[], Document | str]:
    return lambda: function(bench, size)


def _demo(folder: Path) -> Bench:
    source = resolve_source(f"imagefolder:{IMAGES}")
    backbone = load_backbone(resolve_model(MODEL), WEIGHTS)
    return Bench(backbone, source, CPU, folder, default_workers(), FULL.batch)


def _toy(folder: Path) -> Bench:
    source = photos(folder / "photos", TOY.rows, distinct=4)
    return Bench(toy_backbone(), source, CPU, folder, 1, TOY.batch)


def bench_speed(bench: Bench, size: Size) -> Document:
    """JPEG in, cache on disk, against forward pass, decoding and preprocessing on all cores without any loss."""
    measured = []
    plan = bench.plan(size.rows)
    for run in range(size.runs + 1):
        moments = bench.extract(plan)
        forward, decode = _forward_seconds(bench), _decode_seconds(bench, min(64, size.rows))
        if not run:
            continue
        # From the second batch on: starting the processes takes half a second, however many images there are.
        (before, since), (total, end) = moments[3], moments[-1]
        rate = (total - before) / (end - since)
        best = 1 / (forward + decode / usable_cpus())
        measured.append((rate, best, rate / best, since - moments[0][1], forward, decode))
    names = ("images/s", "images/s without any loss", "ratio", "seconds to the second batch")
    values = [median(column) for column in zip(*measured, strict=True)]
    return {
        **{name: round(value, 3) for name, value in zip(names, values, strict=False)},
        "milliseconds an image: forward pass on all cores": round(1e3 * values[4], 2),
        "milliseconds an image: decoding and preprocessing on one core": round(1e3 * values[5], 2),
        "ratios": [round(row[2], 3) for row in measured],
        "runs": size.runs,
    }


@torch.inference_mode()
def _forward_seconds(bench: Bench, batches: int = 6) -> float:
    """Seconds an image of the bare model on all cores."""
    size = bench.backbone.spec.input_size
    images = torch.randn(bench.batch, 3, size, size)
    with forward_context(bench.device, bench.precision):
        bench.backbone.forward(images)
        started = time.perf_counter()
        for _ in range(batches):
            bench.backbone.forward(images)
    return (time.perf_counter() - started) / (batches * bench.batch)


def _decode_seconds(bench: Bench, images: int) -> float:
    """Processor seconds an image of decoding and preprocessing, on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    for row in range(images):
        bench.backbone.transform(to_rgb(bench.source.image("train", row)))
    seconds = (time.process_time() - started) / images
    torch.set_num_threads(threads)
    return seconds


def bench_against_loop(bench: Bench, size: Size) -> Document:
    """All layers of 224 JPEGs to disk, against a plain PyTorch loop that keeps the last class token."""
    rows = size.loop_rows
    return side_by_side(bench.timed(bench.plan(rows)), lambda: bench.plain_loop(rows), size.runs)


def bench_layers(bench: Bench, size: Size) -> Document:
    """The same forward pass on the same threads, without decoding: all layers' tokens against the last class token."""
    split = bench.plan(size.rows).inventory.splits["train"]
    arrays = [array for array in split.arrays.values() if array.layers]
    extractor = FeatureExtractor(bench.backbone, bench.device, bench.precision, arrays, "float16")
    side = bench.backbone.spec.input_size
    images = torch.randn(bench.batch, 3, side, side)
    return side_by_side(
        lambda: [extractor.start(images)() for _ in range(4)],
        lambda: [bench.last_token(images).half().numpy() for _ in range(4)],
        2 * size.runs + 1,
    )


def bench_one_pass(bench: Bench, size: Size) -> Document:
    """Class tokens and averages of all layers and the final patches, to disk: in one pass, and in three."""
    rows, spec = size.pass_rows, bench.backbone.spec
    blocks = tuple(str(index) for index in range(spec.num_layers))

    def of(kinds: tuple[str, ...], layers: tuple[str, ...]) -> list[TokenArray]:
        final = TokenArray("final", "pooled", ("final",), 1, kinds, spec.width)
        return [
            *([TokenArray("norm2", "pooled", layers, len(blocks), kinds, spec.width)] if layers else []),
            final,
        ]

    patches = tuple(f"patch{index}" for index in range(bench.backbone.layout.num_patches))
    final_patches = TokenArray("final", "patches", ("final",), 1, patches, spec.width)
    together = bench.only(rows, [*of(("cls", "ap"), blocks), final_patches])
    apart = [
        bench.only(rows, of(("cls",), blocks)),
        bench.only(rows, of(("ap",), blocks)),
        bench.only(rows, [*of(("cls",), ()), final_patches]),
    ]
    return side_by_side(bench.timed(together), lambda: [bench.extract(plan) for plan in apart], size.runs)


def bench_views(bench: Bench, size: Size) -> Document:
    """All layers of five crops to disk against those of the center crop alone, and how often an image is decoded for them."""
    one = bench.plan(size.pass_rows)
    five = bench.plan(size.pass_rows, FeatureSelection(views="crops5"))
    used: tuple[list[float], list[float]] = ([], [])

    def extraction(plan: Plan, seconds: list[float]) -> Callable[[], None]:
        def extract() -> None:
            before = _processor_seconds()
            bench.extract(plan)
            seconds.append(_processor_seconds() - before)

        return extract

    measured = side_by_side(extraction(five, used[0]), extraction(one, used[1]), size.runs)
    counting = _CountedImages(bench.source)
    alone = Bench(bench.backbone, counting, bench.device, bench.folder / "counted", 0, bench.batch)
    alone.extract(alone.plan(bench.batch, FeatureSelection(views="crops5")))
    seconds, other = float(str(measured["seconds"])), float(str(measured["other_seconds"]))
    return {
        **measured,
        "times the time of one crop": round(seconds / other, 3),
        # Other programs on the machine do not count in it.
        "times the processor time of one crop": round(median(used[0]) / median(used[1]), 3),
        "decodes an image": counting.calls / bench.batch,
    }


def _processor_seconds() -> float:
    """Processor time of this process and of the decoding processes that have ended."""
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class _CountedImages(FirstRows):
    """A source that counts the images that are asked of it."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, len(source.splits["train"]))
        self.calls = 0

    def image(self, split: str, row: int) -> Image:
        self.calls += 1
        return super().image(split, row)


def bench_compiled(bench: Bench, size: Size) -> Document:
    """The compiled pass against the plain one, on the same threads."""
    plan = bench.plan(size.rows)
    side = bench.backbone.spec.input_size
    images = torch.randn(bench.batch, 3, side, side)
    arrays = [array for array in plan.inventory.splits["train"].arrays.values() if array.layers]
    plain = FeatureExtractor(bench.backbone, bench.device, bench.precision, arrays, "float16")
    said: list[str] = []
    started = time.perf_counter()
    with Forward(bench.backbone, bench.device, True, said.append).extractors(plan) as extractors:
        seconds = time.perf_counter() - started
        result = side_by_side(
            lambda: [extractors["train"].start({"": images})() for _ in range(4)],
            lambda: [plain.start(images)() for _ in range(4)],
            size.runs,
        )
    return {**result, "seconds to compile and check": round(seconds, 1), "said": said}


def bench_memory(size: Size) -> Document | str:
    """By how much memory grows after the first batch, with a tiny backbone and synthetic images: 2,000 and 20,000."""
    if not Path("/proc/self/clear_refs").exists():
        return "not measured: only Linux tells and resets the peak of a process"
    grown_by_rows = {rows: _grown(rows) for rows in size.memory_rows}
    return {
        f"MB in the process that {does}, {rows:,} images": round(grown[process] / MEGABYTE, 1)
        for process, does in (("main", "extracts"), ("decoding", "decodes"))
        for rows, grown in grown_by_rows.items()
    }


def _grown(rows: int) -> dict[str, int]:
    command = [sys.executable, "-W", "ignore", "-m", "extract.peak_memory", str(rows)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPO / "tests")
    grown: dict[str, int] = json.loads(answer.stdout)
    return grown


_ON_CPU: Mapping[str, Callable[[Bench, Size], Document]] = {
    "speed": bench_speed,
    "loop": bench_against_loop,
    "layers": bench_layers,
    "passes": bench_one_pass,
    "views": bench_views,
    "compile": bench_compiled,
}
_TITLES = {
    "speed": "JPEG to cache, against forward pass, decoding and preprocessing without any loss",
    "loop": "JPEG to cache, all layers, against a plain loop for the last class token",
    "layers": "all layers, class token and average, against the last class token, same threads",
    "passes": "class tokens, averages and final patches in one pass, against three passes",
    "views": "five crops of every image, JPEG to cache, against one",
    "compile": "compiled pass against the plain one, same threads",
    "memory": "peak memory, tiny backbone",
    "gpu": "ViT-L/14 on a GPU",
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help=", ".join(_TITLES))
    parser.add_argument("--toy", action="store_true", help="toy sizes: only whether it runs")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    print(json.dumps(bench_extraction(arguments.rows, arguments.toy), indent=1))
