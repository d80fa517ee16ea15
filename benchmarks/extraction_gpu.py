"""The extraction with a ViT-L/14 on a GPU: speed, share of the chip's matrix rate, ratio to a plain loop."""

from pathlib import Path

import torch
from extraction_setup import Bench, Synthetic, decoded, matrix_rate, random_backbone, toy_backbone
from timing import Document, side_by_side

from featcache.extraction.forward_pass.capacity import default_workers

RUNS = 9


def bench_gpu(folder: Path, toy: bool = False) -> Document | str:
    """ViT-L/14 at 224 px with random weights; in toy size, a small backbone on the CPU."""
    from torch.utils.flop_counter import FlopCounterMode

    if not torch.cuda.is_available() and not toy:
        return "not measured: no CUDA device"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = toy_backbone() if toy else random_backbone("vit_large_patch14_dinov2")
    rows, batch, runs = (32, 16, 1) if toy else (8192, 128, RUNS)
    size = backbone.spec.input_size
    backbone.transform = decoded(size)
    workers, caches = 0 if toy else default_workers(), folder / "gpu"
    caches.mkdir()
    bench = Bench(backbone, Synthetic(rows), device, caches, workers, batch)
    with FlopCounterMode(display=False) as flops, torch.inference_mode():
        backbone.forward(torch.zeros(1, 3, size, size, device=device))
    peak = matrix_rate(device, 256 if toy else 8192)
    plan, per_image = bench.plan(rows), flops.get_total_flops()
    result = side_by_side(bench.timed(plan), lambda: bench.plain_loop(rows), runs)
    rate = rows / float(str(result["seconds"]))
    document: Document = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "images/s, all layers to disk": round(rate, 1),
        "TFLOP/s of bfloat16 matrix products, measured": round(peak / 1e12, 1),
        "share of that": round(rate * per_image / peak, 3),
        "against a plain loop for the last class token": result,
    }
    if not toy:
        document["compiled, loading and compiling included, against plain"] = side_by_side(
            lambda: bench.extract(plan, compile=True), bench.timed(plan), 3
        )
    return document
