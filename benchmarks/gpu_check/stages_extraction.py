"""Stages of the extraction: features, the forward pass alone, the whole pipeline, and a GPU that is full."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from extraction_setup import Bench, Synthetic, decoded, photos, random_backbone, toy_backbone
from stage import Check, Found
from timing import Document

from featcache.devices.precision import forward_context
from featcache.extraction.backbones.timm_vit import TimmViT
from featcache.extraction.forward_pass.capacity import default_batch_size, default_workers
from featcache.extraction.forward_pass.extractors import Forward
from featcache.extraction.forward_pass.forward import FeatureExtractor
from featcache.extraction.running.batch_size import fitting_batch_size
from featcache.store.journal import Plan
from featcache.store.reading.reader import open_cache

MODELS = {
    "ViT-S/14": "vit_small_patch14_dinov2",
    "ViT-B/14": "vit_base_patch14_dinov2",
    "ViT-L/14": "vit_large_patch14_dinov2",
}
ROWS = {"ViT-S/14": 16_384, "ViT-B/14": 8192, "ViT-L/14": 4096}
"""Images that take 5 to 10 s on a fast GPU, decoded already."""
JPEG_ROWS = 4096
COMPARED = 24
"""Images whose features are compared."""
FREE_BYTES, TOY_FREE_BYTES = 2 * 10**9, 4 * 10**6
"""Memory left on a full GPU: too little for a large batch, enough for a small one."""
# A float32 pass on a GPU adds up in another order than one on a CPU; a mixed one rounds products to 8 bits.
EXACT_TOLERANCE, MIXED_COSINE, DIVIDED_TOLERANCE = 2e-3, 0.99, 0.05


def backbone_of(check: Check, name: str) -> TimmViT:
    """Make a backbone with random weights, on the device."""
    backbone = toy_backbone() if check.toy else random_backbone(MODELS[name])
    backbone.module.to(check.device)
    return backbone


def names(check: Check) -> list[str]:
    """Return the backbones to measure."""
    return list(MODELS)[:1] if check.toy else list(MODELS)


def bench_of(check: Check, backbone: TimmViT, rows: int, batch: int | None = None) -> Bench:
    """Return extractions of images that are decoded already."""
    backbone.transform = decoded(backbone.spec.input_size)
    size = batch or (16 if check.toy else default_batch_size(check.device))
    folder = check.folder / f"caches-{len(list(check.folder.iterdir()))}"
    folder.mkdir()
    return Bench(backbone, Synthetic(rows), check.device, folder, 1 if check.toy else default_workers(), size)


def images_of(backbone: TimmViT, number: int) -> torch.Tensor:
    """Return images of noise ``[B, 3, S, S]``."""
    side = backbone.spec.input_size
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(0))


def correct(check: Check) -> Found:
    """Compare features of the device with those of the CPU, of two runs, of two batch sizes, and without TF32."""
    backbone = backbone_of(check, "ViT-S/14")
    plan = bench_of(check, backbone, 64).plan(64)
    arrays = [array for array in plan.inventory.splits["train"].arrays.values() if array.layers]
    images = images_of(backbone, 3 if check.toy else COMPARED)

    def features(device: torch.device, precision: str, number: int | None = None) -> dict[str, np.ndarray]:
        backbone.module.to(device)
        return FeatureExtractor(backbone, device, precision, arrays, "float32")(images[:number], ())

    on_cpu = features(torch.device("cpu"), "fp32")
    exact, mixed = features(check.device, "fp32"), features(check.device, "mixed")
    few = len(images) // 3
    divided = features(check.device, "mixed", few)
    found: Found = {
        "float32 against the CPU": _difference(exact, on_cpu),
        "mixed against float32 on the CPU": _difference(mixed, on_cpu),
        "mixed, a third of the batch": _difference(divided, {name: v[:few] for name, v in mixed.items()}),
        "mixed, twice, the same bits": _are_equal(mixed, features(check.device, "mixed")),
        "batch by default": fitting_batch_size(backbone, check.device, plan.spec, plan.inventory),
    }
    with _tf32_asked_for():
        found["float32 where the program allows TF32"] = _difference(features(check.device, "fp32"), on_cpu)
    exact_errors = [found["float32 against the CPU"], found["float32 where the program allows TF32"]]
    worst = max(float(str(error["largest relative difference"])) for error in exact_errors)  # type: ignore[index]
    least = float(str(found["mixed against float32 on the CPU"]["least cosine"]))  # type: ignore[index]
    return {"ok": worst < EXACT_TOLERANCE and least > MIXED_COSINE, **found}


def _difference(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> Document:
    worst, least = 0.0, 1.0
    for name, values in found.items():
        a, b = (torch.from_numpy(array.astype(np.float32)) for array in (values, wanted[name]))
        relative = (a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-12)
        worst = max(worst, float(relative.max()))
        least = min(least, float(torch.nn.functional.cosine_similarity(a, b, dim=-1).min()))
    return {"largest relative difference": float(f"{worst:.3g}"), "least cosine": round(least, 6)}


def _are_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(values, wanted[name]) for name, values in found.items())


def _tf32_asked_for() -> ExitStack:
    """Return a context in which the program around allows TF32, as many training scripts do."""
    stack = ExitStack()
    stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("high")
    return stack


def forward(check: Check) -> Found:
    """Measure the forward pass alone, images on the device: bare, with all layers kept, and compiled."""
    from torch.utils.flop_counter import FlopCounterMode

    found: Found = {}
    for name in names(check):
        backbone = backbone_of(check, name)
        plan = bench_of(check, backbone, 256).plan(64 if check.toy else 256)
        arrays = [array for array in plan.inventory.splits["train"].arrays.values() if array.layers]
        extractor = FeatureExtractor(backbone, check.device, "mixed", arrays, "float16")
        with FlopCounterMode(display=False) as flops, torch.inference_mode():
            backbone.forward(images_of(backbone, 1).to(check.device))
        row: Found = {"GFLOP an image": round(flops.get_total_flops() / 1e9, 1)}
        for batch in (2,) if check.toy else (64, 128, 256, 512):
            images = images_of(backbone, batch).to(check.device)
            bare = check.seconds(_bare(backbone, check.device, images))
            kept = check.seconds(partial(_passed, extractor, images))
            row[f"batch {batch}"] = {
                "bare, images/s": round(batch / bare, 1),
                "all layers, images/s": round(batch / kept, 1),
                "cost of the layers": f"{100 * (kept / bare - 1):.1f} %",
                "TFLOP/s": round(batch * flops.get_total_flops() / kept / 1e12, 2),
            }
            del images
            check.clean()
        if check.on_gpu and not check.toy and check.left_s() > 200:
            row["compiled"] = _compiled(check, backbone, plan)
        found[name] = row
        backbone.module.to("cpu")
        check.clean()
    return found


def _passed(extractor: FeatureExtractor, images: torch.Tensor) -> None:
    extractor.start(images)()


def _bare(backbone: TimmViT, device: torch.device, images: torch.Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> None:
        with forward_context(device, "mixed"):
            backbone.forward(images)

    return run


def _compiled(check: Check, backbone: TimmViT, plan: Plan) -> Document:
    messages: list[str] = []
    started = time.perf_counter()
    images = images_of(backbone, 128).to(check.device)
    with Forward(backbone, check.device, True, messages.append).extractors(plan) as extractors:
        seconds = time.perf_counter() - started
        rate = 128 / check.seconds(lambda: extractors["train"].start({"": images})())
    return {
        "images/s": round(rate, 1),
        "seconds to compile and check": round(seconds, 1),
        "messages": messages,
    }


def speed(check: Check) -> Found:
    """Measure the whole pipeline to the disk: images that are decoded already, and JPEGs."""
    found: Found = {"processes that decode": 1 if check.toy else default_workers()}
    source = photos(check.folder / "photos", *((48, 4) if check.toy else (JPEG_ROWS, 256)))
    for name in names(check):
        backbone = backbone_of(check, name)
        transform = backbone.transform
        rows = 64 if check.toy else ROWS[name]
        bench = bench_of(check, backbone, rows)
        found[f"{name}, decoded"] = _extraction(bench, rows)
        if check.toy or check.left_s() > 60:
            backbone.transform, bench.source = transform, source
            found[f"{name}, JPEG of 500 x 375"] = _extraction(bench, min(rows, len(source.splits["train"])))
        backbone.module.to("cpu")
        check.clean()
    return found


def _extraction(bench: Bench, rows: int) -> Document:
    moments = bench.extract(bench.plan(rows))
    (_, started), (_, ended) = moments[0], moments[-1]
    # Starting the processes takes the same time however many images there are.
    done, since = next(moment for moment in moments if moment[0] >= rows // 4)
    return {
        "images": rows,
        "images/s": round(rows / (ended - started), 1),
        "images/s after the first quarter": round((rows - done) / max(ended - since, 1e-9), 1),
        "messages": bench.messages[:],
    }


def out_of_memory(check: Check) -> Found:
    """Extract on a GPU that is nearly full: batches are divided, features stay, and memory comes back."""
    backbone = backbone_of(check, "ViT-B/14")
    rows, batch = (32, 16) if check.toy else (1024, 512)
    bench = bench_of(check, backbone, rows, batch)
    plan = bench.plan(rows)
    bench.extract(plan, directory=check.folder / "roomy")
    check.clean()
    before, blocker = check.allocated_bytes(), None
    if check.on_gpu:
        free, _ = torch.cuda.mem_get_info(check.device)
        blocker = torch.empty(
            max(1, free - (TOY_FREE_BYTES if check.toy else FREE_BYTES)),
            dtype=torch.uint8,
            device=check.device,
        )
    bench.extract(plan, directory=check.folder / "full")
    del blocker
    check.clean()
    caches = [open_cache(check.folder / name)["train"] for name in ("roomy", "full")]
    roomy, full = ({"": cache.load(cache.layers, cache.tokens)} for cache in caches)
    difference = _difference(full, roomy)
    divided = any("out of memory" in message for message in bench.messages)
    is_near = float(str(difference["largest relative difference"])) < DIVIDED_TOLERANCE
    return {
        "ok": is_near and (divided or not check.on_gpu) and check.allocated_bytes() <= before,
        "messages": bench.messages,
        "features against those of a roomy GPU": difference,
        "MB still allocated": round((check.allocated_bytes() - before) / 1e6, 1),
    }
