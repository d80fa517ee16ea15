"""From JPEG file to batch: decoding, content digest, preprocessing and hand-over of 500 x 375 pixels by one worker process.

Against what `featcache` 0.1.0 did, in the same run: torch's loader, Pillow and torchvision's steps, float32 in shared memory.
Processor seconds of both processes are counted, since a machine that others use tells little by the clock.

    .venv/bin/python benchmarks/decoding.py [--toy]
"""

import argparse
import gc
import json
import resource
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timing import Document
from torch.utils.data import DataLoader, Dataset

from featcache.extraction.decoding.batch import Rows
from featcache.extraction.decoding.images import image_batches
from featcache.extraction.decoding.preprocessing import with_resize
from featcache.extraction.decoding.rgb import content_digest, to_rgb
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.base import Source
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.store.spec import PILLOW, UINT8_ANTIALIAS

SIDE = 224
TRANSFORM = timm.data.create_transform(SIDE, interpolation="bicubic", crop_pct=0.875)


class Earlier(Dataset[Any]):
    """The images as version 0.1.0 prepared them."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.splits["train"])

    def __getitem__(self, row: int) -> tuple[torch.Tensor, bytes]:
        """Return ``[3, S, S]`` float32, and the digest."""
        image = to_rgb(self.source.image("train", row))
        return TRANSFORM(image), content_digest(image)


def together(items: list[tuple[torch.Tensor, bytes]]) -> tuple[torch.Tensor, list[bytes]]:
    """Return the batch of some images."""
    return torch.stack([image for image, _ in items]), [digest for _, digest in items]


def write_photos(folder: Path, images: int) -> None:
    """Write images of smooth areas with noise, at the rate of photographs: about 77 KB each."""
    chance = np.random.default_rng(0)
    (folder / "train" / "a").mkdir(parents=True)
    (folder / "test" / "a").mkdir(parents=True)
    for index in range(images):
        coarse = Image.fromarray(chance.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        noisy = (smooth + chance.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "train" / "a" / f"{index}.jpg", quality=90)
    coarse.save(folder / "test" / "a" / "0.png")


def processor_seconds(batches: Callable[[], Iterable[Any]]) -> float:
    """Return the seconds that this process and its children take to go through all batches."""
    before = _seconds()
    for _ in batches():
        pass
    gc.collect()  # ends the processes of a loader
    return _seconds() - before


def _seconds() -> float:
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


def measure(source: Source, images: int, batch: int, runs: int) -> Document:
    """Run both ways in turn and return images a second for one core."""
    rows = [Rows("train", start, min(start + batch, images)) for start in range(0, images, batch)]

    def ours(resize: str) -> Iterable[Any]:
        return image_batches(source, with_resize(TRANSFORM, resize), rows, 1, SIDE)

    def earlier() -> Iterable[Any]:
        return DataLoader(Earlier(source), batch, num_workers=1, collate_fn=together)

    ways = {UINT8_ANTIALIAS: lambda: ours(UINT8_ANTIALIAS), PILLOW: lambda: ours(PILLOW), "earlier": earlier}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            took = processor_seconds(way)
            if run:
                seconds[name].append(took)
    rates = {name: images / median(took) for name, took in seconds.items()}
    document: Document = {f"{name}_images_per_s_and_core": round(rate, 1) for name, rate in rates.items()}
    for name in (UINT8_ANTIALIAS, PILLOW):
        pairs = zip(seconds["earlier"], seconds[name], strict=True)
        document[f"{name}_times_faster"] = round(median(other / ours for other, ours in pairs), 2)
    return document | {"images": images, "batch": batch, "runs": runs}


def bench_decoding(images: int = 1024, batch: int = 128, runs: int = 5) -> Document:
    """Measure on files that are written anew; so many images that starting a process does not count."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), images)
        source = resolve_source(f"imagefolder:{folder}", DatasetOptions())
        return measure(source, images, batch, runs)


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="a few images, to see that it runs")
    toy = parser.parse_args().toy
    print(json.dumps(bench_decoding(8, 4, 1) if toy else bench_decoding()))


if __name__ == "__main__":
    main()
