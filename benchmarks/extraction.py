"""What an extraction costs, against the best that its parts allow: the demo's DINOv2 ViT-S/14 on the demo's JPEGs.

All rows or some of them: `.venv/bin/python benchmarks/extraction.py [speed layers ...]`, after `make demo`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from timing import Document, side_by_side

from featcache.devices.choice import choose_device
from featcache.devices.precision import fast_precision, forward_context
from featcache.extraction.backbones import load_backbone
from featcache.extraction.backbones.base import Backbone
from featcache.extraction.decoding.images import Rows, image_batches
from featcache.extraction.decoding.rgb import to_rgb
from featcache.extraction.forward_pass.capacity import default_workers
from featcache.extraction.forward_pass.extractors import Forward
from featcache.extraction.forward_pass.forward import FeatureExtractor
from featcache.extraction.models.names import resolve_model
from featcache.extraction.planning.inventory import plan_inventory
from featcache.extraction.requests.feature_selection import FeatureSelection
from featcache.extraction.running.pipeline import ImageInput, run_blocks
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.base import Sample, Source
from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.machine import usable_cpus
from featcache.store.planning import TokenArray, plan_arrays
from featcache.store.spec import CacheSpec
from featcache.store.targets import SINGLE_LABEL, Targets
from featcache.store.writing.writer import CacheWriter

REPO = Path(__file__).parent.parent
WEIGHTS, IMAGES = REPO / ".demo" / "dinov2_vits14.safetensors", REPO / ".demo" / "textile"
MODEL = "dinov2-vit-s-14"
RUNS = 9
MEGABYTE = 2**20
CPU = torch.device("cpu")


class Bench:
    """A backbone, a dataset, and extractions of the first rows of it into caches that are thrown away."""

    def __init__(
        self, backbone: Backbone, source: Source, device: torch.device, folder: Path, workers: int, batch: int
    ) -> None:
        self.backbone = backbone
        self.source = source
        self.device = device
        self.precision = fast_precision(device)
        self.workers = workers
        self.batch = batch
        self._folders = (folder / f"cache-{number}" for number in count())
        backbone.module.to(device)

    def plan(self, rows: int, contents: FeatureSelection | None = None) -> Plan:
        """All that `contents` says of the first rows of train."""
        spec = CacheSpec(self.backbone.spec, {"kind": "bench"}, "float16", self.precision)
        wanted = plan_inventory(
            self.backbone, _First(self.source, rows), contents or FeatureSelection(), "float16"
        )
        return Plan(spec, wanted, self.batch)

    def only(self, rows: int, arrays: Sequence[TokenArray]) -> Plan:
        """Just some arrays."""
        plan = self.plan(rows)
        split = plan_arrays(
            "train", rows, arrays, self.backbone.spec.width, "float16", 64, content_digest=True
        )
        return replace(plan, inventory=Inventory({"train": split}, plan.inventory.class_names))

    def extract(self, plan: Plan, compile: bool = False) -> list[tuple[int, float]]:
        """Run the extraction; images that are through, and when, from the start on."""
        moments: list[tuple[int, float]] = []
        say: Callable[[str], None] = lambda text: None  # noqa: E731
        images = ImageInput(
            self.source,
            self.backbone.transform,
            self.backbone.spec.input_size,
            self.workers,
            self.device,
        )
        forward = Forward(self.backbone, self.device, compile, say)
        with forward.extractors(plan) as extractors, CacheWriter(next(self._folders), plan) as writer:
            moments.append((0, time.perf_counter()))
            run_blocks(
                writer, images, extractors, lambda done, total: moments.append((done, time.perf_counter()))
            )
            moments.append((plan.inventory.num_samples, time.perf_counter()))
        return moments

    def timed(self, plan: Plan) -> Callable[[], object]:
        """The extraction as something to time."""
        return lambda: self.extract(plan)

    def plain_loop(self, rows: int) -> None:
        """What one writes without featcache: the class token of the last layer, one pass after another."""
        parts = [Rows("train", start, min(start + self.batch, rows)) for start in range(0, rows, self.batch)]
        loader = image_batches(
            self.source,
            self.backbone.transform,
            parts,
            self.workers,
            self.device.type == "cuda",
            self.backbone.spec.input_size,
        )
        kept = [self.last_token(batch.images) for batch in loader]
        with next(self._folders).open("wb") as file:
            np.save(file, torch.cat(kept).half().numpy())

    @torch.inference_mode()
    def last_token(self, images: torch.Tensor) -> torch.Tensor:
        """The class token ``[B, D]`` of the final norm, on the host."""
        seen: list[torch.Tensor] = []
        handle = self.backbone.final_norm.register_forward_hook(
            lambda module, inputs, output: seen.append(output[:, 0])
        )
        with forward_context(self.device, self.precision):
            self.backbone.forward(images.to(self.device, non_blocking=True))
        handle.remove()
        return seen[0].float().cpu()


@dataclass
class _First(Source):
    """The first rows of a source's train split."""

    source: Source
    rows: int
    name: str = "bench"
    identity: Mapping[str, object] = field(default_factory=dict)

    @property
    def splits(self) -> Mapping[str, Sequence[Sample]]:
        return {"train": self.source.splits["train"][: self.rows]}

    @property
    def targets(self) -> Targets:
        return self.source.targets

    def image(self, split: str, row: int) -> Image.Image:
        return self.source.image(split, row)


def bench_extraction(rows: Sequence[str] = ()) -> Document:
    """The rows named, or all; those of the CPU need the demo's files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made: dict[str, Callable[[], Document]] = {"memory": bench_memory}
        if WEIGHTS.is_file() and IMAGES.is_dir():
            bench = _demo(folder)
            made |= {row: _bound(function, bench) for row, function in _ON_CPU.items()}
        document: Document = {
            title: made[row]() for row, title in _TITLES.items() if row in made and (not rows or row in rows)
        }
        if len(made) == 1:
            document["not measured"] = "the demo's weights and images are not there; `make demo` fetches them"
        if not rows or "gpu" in rows:
            gpu = torch.cuda.is_available()
            document["ViT-L/14 on a GPU"] = bench_gpu(folder) if gpu else "not measured: no CUDA device"
    return document


def _bound(function: Callable[[Bench], Document], bench: Bench) -> Callable[[], Document]:
    return lambda: function(bench)


def _demo(folder: Path) -> Bench:
    source = resolve_source(f"imagefolder:{IMAGES}")
    return Bench(load_backbone(resolve_model(MODEL), WEIGHTS), source, CPU, folder, default_workers(), 16)


def bench_speed(bench: Bench) -> Document:
    """JPEG in, cache on disk, against forward pass, decoding and preprocessing on all cores without any loss."""
    rows, measured = 320, []
    plan = bench.plan(rows)
    for run in range(RUNS + 1):
        moments = bench.extract(plan)
        forward, decode = _forward_seconds(bench), _decode_seconds(bench)
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
        "runs": RUNS,
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


def _decode_seconds(bench: Bench, images: int = 64) -> float:
    """Processor seconds an image of decoding and preprocessing, on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    for row in range(images):
        bench.backbone.transform(to_rgb(bench.source.image("train", row)))
    seconds = (time.process_time() - started) / images
    torch.set_num_threads(threads)
    return seconds


def bench_against_loop(bench: Bench) -> Document:
    """All layers of 224 JPEGs to disk, against a plain PyTorch loop that keeps the last class token."""
    plan = bench.plan(224)
    return side_by_side(bench.timed(plan), lambda: bench.plain_loop(224), RUNS)


def bench_layers(bench: Bench) -> Document:
    """The same forward pass on the same threads, without decoding: all layers' tokens against the last class token."""
    split = bench.plan(320).inventory.splits["train"]
    arrays = [array for array in split.arrays.values() if array.layers]
    extractor = FeatureExtractor(bench.backbone, bench.device, bench.precision, arrays, "float16")
    size = bench.backbone.spec.input_size
    images = torch.randn(bench.batch, 3, size, size)
    return side_by_side(
        lambda: [extractor.start(images)() for _ in range(4)],
        lambda: [bench.last_token(images).half().numpy() for _ in range(4)],
        2 * RUNS + 1,
    )


def bench_one_pass(bench: Bench) -> Document:
    """Class tokens and averages of all layers and the final patches, to disk: in one pass, and in three."""
    rows, spec = 96, bench.backbone.spec
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
    return side_by_side(bench.timed(together), lambda: [bench.extract(plan) for plan in apart], RUNS)


def bench_compiled(bench: Bench) -> Document:
    """The compiled pass against the plain one, on the same threads."""
    plan = bench.plan(320)
    size = bench.backbone.spec.input_size
    images = torch.randn(bench.batch, 3, size, size)
    arrays = [array for array in plan.inventory.splits["train"].arrays.values() if array.layers]
    plain = FeatureExtractor(bench.backbone, bench.device, bench.precision, arrays, "float16")
    said: list[str] = []
    started = time.perf_counter()
    with Forward(bench.backbone, bench.device, True, said.append).extractors(plan) as extractors:
        seconds = time.perf_counter() - started
        result = side_by_side(
            lambda: [extractors["train"].start(images)() for _ in range(4)],
            lambda: [plain.start(images)() for _ in range(4)],
            RUNS,
        )
    return {**result, "seconds to compile and check": round(seconds, 1), "said": said}


def bench_memory() -> Document:
    """By how much memory grows after the first batch, with a tiny backbone and synthetic images: 2,000 and 20,000."""
    if not Path("/proc/self/clear_refs").exists():
        return {"skipped": "only Linux tells and resets the peak of a process"}
    few, many = (_grown(rows) for rows in (2_000, 20_000))
    return {
        f"MB in the process that {does}, {rows:,} images": round(grown[process] / MEGABYTE, 1)
        for process, does in (("main", "extracts"), ("decoding", "decodes"))
        for rows, grown in ((2_000, few), (20_000, many))
    }


def _grown(rows: int) -> dict[str, int]:
    command = [sys.executable, "-W", "ignore", "-m", "extract.peak_memory", str(rows)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPO / "tests")
    grown: dict[str, int] = json.loads(answer.stdout)
    return grown


class Synthetic(Source):
    """As many copies of one image as wanted, decoded already."""

    name = "synthetic"
    targets = Targets(SINGLE_LABEL, ("one",))
    identity: Mapping[str, object] = {}

    def __init__(self, rows: int, size: int) -> None:
        self._samples = {"train": [Sample(f"image-{row}", 0) for row in range(rows)]}
        self._image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))

    @property
    def splits(self) -> dict[str, list[Sample]]:
        return self._samples

    def image(self, split: str, row: int) -> Image.Image:
        """The one image."""
        return self._image


class Decoded:
    """A transform that has its result already."""

    def __init__(self, size: int) -> None:
        self._tensor = torch.randn(3, size, size, generator=torch.Generator().manual_seed(0))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The one tensor."""
        return self._tensor


def bench_gpu(
    folder: Path, device: str = "cuda", model: str = "vit_large_patch14_dinov2", rows: int = 8192
) -> Document:
    """ViT-L/14 at 224 px with random weights: speed, share of the chip's matrix rate, ratio to a plain loop."""
    import timm
    from safetensors.torch import save_file
    from torch.utils.flop_counter import FlopCounterMode

    weights = folder / "random.safetensors"
    save_file(timm.create_model(model, num_classes=0, img_size=224).state_dict(), weights)
    backbone = load_backbone(resolve_model(f"timm:{model}"), weights)
    size, chosen = backbone.spec.input_size, choose_device(device)
    backbone.transform = backbone.loaded.transform if rows < 128 else Decoded(size)
    bench = Bench(backbone, Synthetic(rows, 8), chosen, folder, default_workers(), min(128, rows))
    with FlopCounterMode(display=False) as flops, torch.inference_mode():
        backbone.forward(torch.zeros(1, 3, size, size, device=chosen))
    peak = _matrix_rate(chosen, 8192 if chosen.type == "cuda" else 1024)
    plan, per_image = bench.plan(rows), flops.get_total_flops()
    result = side_by_side(bench.timed(plan), lambda: bench.plain_loop(rows), RUNS if rows >= 128 else 1)
    compiled = (
        side_by_side(lambda: bench.extract(plan, compile=True), bench.timed(plan), 3) if rows >= 128 else {}
    )
    rate = rows / float(str(result["seconds"]))
    return {
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else str(chosen),
        "images/s, all layers to disk": round(rate, 1),
        "TFLOP/s of bfloat16 matrix products, measured": round(peak / 1e12, 1),
        "share of that": round(rate * per_image / peak, 3),
        "against a plain loop for the last class token": result,
        "compiled, loading and compiling included, against plain": compiled,
    }


def _matrix_rate(device: torch.device, side: int) -> float:
    """Floating-point operations per second of a large bfloat16 matrix product."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    synchronize: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(10):
        synchronize()
        started = time.perf_counter()
        torch.mm(a, b)
        synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / median(seconds)


_ON_CPU: Mapping[str, Callable[[Bench], Document]] = {
    "speed": bench_speed,
    "loop": bench_against_loop,
    "layers": bench_layers,
    "passes": bench_one_pass,
    "compile": bench_compiled,
}
_TITLES = {
    "speed": "JPEG to cache, against forward pass, decoding and preprocessing without any loss",
    "loop": "JPEG to cache, all layers, against a plain loop for the last class token",
    "layers": "all layers, class token and average, against the last class token, same threads",
    "passes": "class tokens, averages and final patches in one pass, against three passes",
    "compile": "compiled pass against the plain one, same threads",
    "memory": "peak memory, tiny backbone",
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help=", ".join((*_TITLES, "gpu")))
    torch.set_flush_denormal(True)
    print(json.dumps(bench_extraction(parser.parse_args().rows), indent=1))
