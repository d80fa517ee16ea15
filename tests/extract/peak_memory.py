"""What an extraction takes of memory at most, as a process of its own: ``python -m extract.peak_memory ROWS [DEVICE]``.

The real pipeline with a tiny backbone and synthetic images: prints the bytes by which the peaks of this process, of the
largest process that decodes, and of the device's allocator lie above what was taken when the first batch was through.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from featcache.extract.contents import Contents
from featcache.extract.extractors import Forward
from featcache.extract.pipeline import ImageInput, run_blocks
from featcache.extract.planning import plan_inventory
from featcache.extract.sources.base import Sample
from featcache.store.journal import Plan
from featcache.store.spec import CacheSpec
from featcache.store.writing.writer import CacheWriter

from .tiny import SIZE, timm_vit, to_tensor

# 17 kB of features an image, besides its 12 kB of pixels: whatever is kept shows.
EVERYTHING = Contents(("norm2", "mlp", "block"), tokens="cls,ap,grid2", patches="0,1,2,final")
BATCH_SIZE, WORKERS = 16, 1


class Synthetic:
    """As many copies of one image as wanted."""

    name = "synthetic"
    class_names = ("one",)
    identity: Mapping[str, object] = {"kind": "synthetic"}  # noqa: RUF012

    def __init__(self, rows: int) -> None:
        self.splits = {"train": [Sample(f"image-{row}", 0) for row in range(rows)]}
        self._pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)

    def image(self, split: str, row: int) -> Image.Image:
        """The one image."""
        return Image.fromarray(self._pixels)


def status_bytes(name: str, process: int | str = "self") -> int:
    """A size that Linux keeps of a process, such as ``VmRSS`` or its peak ``VmHWM``."""
    with open(f"/proc/{process}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


def forget_peaks() -> None:
    """Let the peak of this process begin anew; loading has one of its own, which would hide others."""
    Path("/proc/self/clear_refs").write_text("5")


class Peaks:
    """Peaks of this process, of those that it forked, and of the device, and what was taken at the start."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._start: dict[int | str, int] = {}
        self._decoding = 0
        self._batches = 0

    def update(self, done: int, total: int) -> None:
        """Look at all processes; to be called after every batch, so that the last look is near the end."""
        for child in active_children():
            # A forked process has its parent's size as its first peak.
            peak = status_bytes("VmHWM", child.pid or 0)
            self._decoding = max(self._decoding, peak - self._start.setdefault(child.pid or 0, peak))
        self._batches += 1
        if self._batches == 2:  # the first call comes before the first batch
            forget_peaks()
            self._start["self"] = status_bytes("VmRSS")
            if self._cuda is not None:
                torch.cuda.reset_peak_memory_stats(self._cuda)
                self._start["cuda"] = torch.cuda.memory_allocated(self._cuda)

    def grown(self) -> dict[str, int]:
        """Bytes by which the peaks lie above the start."""
        grown = {"main": status_bytes("VmHWM") - self._start["self"], "decoding": self._decoding}
        if self._cuda is not None:
            grown["device"] = torch.cuda.max_memory_allocated(self._cuda) - self._start["cuda"]
        return grown


def main(rows: int, device: torch.device) -> None:
    """Extract `rows` images and print the growth as JSON."""
    backbone, source, peaks = timm_vit(), Synthetic(rows), Peaks(device)
    backbone.module.to(device)
    spec = CacheSpec(backbone.spec, source.identity, "float16", "fp32")
    plan = Plan(spec, plan_inventory(backbone, source, EVERYTHING, "float16"), BATCH_SIZE)
    images = ImageInput(source, to_tensor, SIZE, WORKERS, device)
    forward = Forward(backbone, device, False, print)
    with (
        tempfile.TemporaryDirectory() as folder,
        forward.extractors(plan) as extractors,
        CacheWriter(Path(folder), plan) as writer,
    ):
        assert run_blocks(writer, images, extractors, peaks.update) == rows
    print(json.dumps(peaks.grown()))


if __name__ == "__main__":
    main(int(sys.argv[1]), torch.device(*sys.argv[2:3] or ["cpu"]))
