"""What a dataset that grows costs: the second extract against a full one, with and without records of its files."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timing import Document

from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.result import ExtractResult
from featcache.extraction.run import extract

MODEL = "timm:test_vit.r160_in1k"
SIDE = 96
SETTLE_S = 2.5
"""Files get a record once they are two seconds old."""


@dataclass(frozen=True)
class Size:
    """Sizes of what is extracted; with smaller ones the figures say nothing."""

    images: int
    added: int
    runs: int


FULL, TOY = Size(2000, 100, 3), Size(140, 10, 1)


class Growth:
    """A folder of images that grows, and roots to extract it into.

    Args:
        folder: where everything goes.
        size: sizes.
    """

    def __init__(self, folder: Path, size: Size) -> None:
        self._folder, self._size = folder, size
        self._weights = folder / "weights.safetensors"
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit", num_classes=0).state_dict(), self._weights)
        self._images = folder / "images"
        self._add(0, size.images)
        time.sleep(SETTLE_S)
        self._data("records")
        self.run("before")
        self._add(size.images, size.images + size.added)

    def run(self, root: str, reuse: str = "auto") -> ExtractResult:
        """Extract the images as they are now."""
        request = ExtractRequest(
            MODEL, f"imagefolder:{self._images}", weights=self._weights, device="cpu", reuse=reuse
        )
        return extract(request, [self._folder / root])

    def again(self, records: bool) -> ExtractResult:
        """Extract the grown images beside the cache of before."""
        self._data("records" if records else "no-records")
        return self._fresh(lambda: self.run("before"))

    def whole(self) -> ExtractResult:
        """Extract the grown images as if nothing were there."""
        return self._fresh(lambda: self.run("full", "none"))

    def same_bytes(self) -> bool:
        """Return whether both ways give the same manifest, which has the digest of every file."""
        self._data("records")
        manifests = {
            (one.path / "manifest.json").read_bytes()
            for one in (self.run("before"), self.run("full", "none"))
        }
        return len(manifests) == 1

    def _fresh(self, run: Callable[[], ExtractResult]) -> ExtractResult:
        """Run, and remove the cache first that an earlier call has made."""
        result = run()
        if result.cached:
            shutil.rmtree(result.path)
            result = run()
        return result

    def _add(self, start: int, stop: int) -> None:
        for number in range(start, stop):
            path = self._images / "ab"[number % 2] / f"{number * 7919 % 100_000:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(path, quality=90)

    def _data(self, name: str) -> None:
        """Keep records in a folder of this name."""
        os.environ["FEATCACHE_DATA"] = str(self._folder / name)


def bench_growth(toy: bool = False) -> Document:
    """A dataset of 2,000 small images that grows by 100: the second extract against a full one."""
    size = TOY if toy else FULL
    with tempfile.TemporaryDirectory() as folder:
        growth = Growth(Path(folder), size)
        seconds: dict[str, list[float]] = {"records": [], "no records": [], "full": []}
        for _ in range(size.runs):
            for name, run in (
                ("records", lambda: growth.again(True)),
                ("no records", lambda: growth.again(False)),
                ("full", growth.whole),
            ):
                result = run()
                seconds[name].append(result.seconds)
                if name != "full" and result.reused != size.images:
                    raise AssertionError(f"{result.reused} of {size.images} rows were reused")
        passes = {name: median(times) for name, times in seconds.items()}
        return {
            "a dataset grows": {
                "images": size.images,
                "added": size.added,
                **{f"seconds, {name}": round(value, 3) for name, value in passes.items()},
                "part of a full run, records": round(passes["records"] / passes["full"], 3),
                "part of a full run, no records": round(passes["no records"] / passes["full"], 3),
                "same bytes": growth.same_bytes(),
                "runs": size.runs,
            }
        }
