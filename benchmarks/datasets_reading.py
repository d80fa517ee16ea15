"""What it costs to read datasets: walking shards, members in any order, slices of HDF5, a million files.

Sizes are small enough for the page cache, so what is compared is work, not the disk.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from timing import Document, side_by_side

from featcache.extraction.sources.argument import Argument
from featcache.extraction.sources.arrays import ArrayCollection
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.hdf5 import open_hdf5
from featcache.extraction.sources.tar_index import index_tar
from featcache.extraction.sources.webdataset import WebDataset
from featcache.store.progress import Silent
from support.datasets import write_tar

FILE_BYTES, WORKERS = 20_000, 4
PCAM_ROW, BATCH = (96, 96, 3), 256


@dataclass(frozen=True)
class Size:
    """Sizes of what is read; with smaller ones the figures say nothing."""

    members: int
    """Members of the shard that is indexed."""
    files: int
    """Images that are read in random order."""
    rows: int
    """Rows of the HDF5 files."""
    tree: int
    """Folders of the large folder of images, and files in each."""
    runs: int | None
    """Runs of every comparison; None for the usual number of each."""


FULL = Size(50_000, 20_000, 32_768, 1000, None)
TOY = Size(200, 64, 512, 4, 1)

START = """
import json, os, sys
from pathlib import Path
from contextlib import contextmanager
from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.run import extract
from featcache.store.progress import Silent

def peak(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

class First(Silent):
    @contextmanager
    def progress(self, title, unit):
        def update(done, total, /):
            if title == "extracting" and done:
                print(json.dumps({"peak_bytes": peak("VmHWM:"), "samples": total}), flush=True)
                os.killpg(0, 9)
        yield update

os.setpgid(0, 0)
folder, weights, root = sys.argv[1:]
request = ExtractRequest("timm:test_vit.r160_in1k", "imagefolder:" + folder, weights=Path(weights), precision="fp32")
extract(request, [Path(root)], reporter=First())
"""


def bench_datasets(toy: bool = False) -> Document:
    """All rows."""
    size = TOY if toy else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "index a tar of 50,000 small members, against tar -t": bench_index(folder, size),
            "random members of an indexed tar, 4 processes, against files": bench_members(folder, size),
            "PCAM's shape into batches, against slices of h5py": bench_hdf5(folder, size),
            "first batch of a million files": bench_tree(folder, size),
        }


def bench_index(folder: Path, size: Size) -> Document:
    """Walk a shard of small images and labels."""
    rng = np.random.default_rng(0)
    members = [
        member
        for row in range(size.members // 2)
        for member in (
            (f"s{row:07d}.webp", rng.bytes(int(rng.integers(1000, 4000)))),
            (f"s{row:07d}.cls", b"%d" % (row // 300)),
        )
    ]
    path = write_tar(folder / "index.tar", members)

    def tar() -> None:
        subprocess.run(["tar", "-tf", path], check=True, stdout=subprocess.DEVNULL)

    return side_by_side(lambda: index_tar(path), tar, size.runs or 15)


def bench_members(folder: Path, size: Size) -> Document:
    """Bytes of images in random order, from one tar and from as many files."""
    content = np.random.default_rng(0).bytes(FILE_BYTES)
    files = folder / "files"
    files.mkdir()
    members = []
    for row in range(size.files):
        members += [(f"s{row:07d}.png", content), (f"s{row:07d}.cls", b"0")]
        (files / f"s{row:07d}.png").write_bytes(content)
    tar = WebDataset("members", {"": [write_tar(folder / "members.tar", members)]})
    paths = [str(files / f"s{row:07d}.png") for row in range(size.files)]
    order = np.random.default_rng(1).permutation(size.files)
    parts = [part.tolist() for part in np.array_split(order, WORKERS)]
    _SHARED.update(tar=tar, paths=paths)
    with ProcessPoolExecutor(WORKERS, get_context("fork")) as pool:

        def both(read: Callable[[Sequence[int]], int]) -> Callable[[], object]:
            return lambda: list(pool.map(read, parts))

        return side_by_side(both(_read_members), both(_read_files), size.runs or 15)


_SHARED: dict[str, object] = {}


def _read_members(rows: Sequence[int]) -> int:
    tar = _SHARED["tar"]
    assert isinstance(tar, WebDataset)
    return sum(len(tar.content(row)) for row in rows)


def _read_files(rows: Sequence[int]) -> int:
    paths, total = _SHARED["paths"], 0
    assert isinstance(paths, list)
    for row in rows:
        with open(paths[row], "rb", buffering=0) as file:
            total += len(file.read())
    return total


def bench_hdf5(folder: Path, size: Size) -> Document:
    """Batches of 256 in order, from contiguous, chunked and packed datasets."""
    pixels = np.random.default_rng(0).integers(0, 64, (size.rows, *PCAM_ROW), np.uint8)
    forms = {
        "contiguous": {},
        "chunks of 64 rows": {"chunks": (64, *PCAM_ROW)},
        "chunks of 64 rows, gzip": {"chunks": (64, *PCAM_ROW), "compression": "gzip", "compression_opts": 1},
    }
    document: Document = {}
    for form, options in forms.items():
        path = folder / "pcam.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=pixels, **options)
            file["y"] = np.zeros((len(pixels), 1, 1, 1), np.uint8)
        collection = open_hdf5(Argument.parse("hdf5", str(path), ""), DatasetOptions(), Silent())
        document[form] = side_by_side(
            lambda c=collection: _batches(c, size.rows), lambda p=path: _slices(p, size.rows), size.runs or 5
        )
        document[f"{form}, as images of Pillow's"] = side_by_side(
            lambda c=collection: _images(c, size.rows), lambda p=path: _slices(p, size.rows), size.runs or 3
        )
        path.unlink()
    return document


def _slices(path: Path, num_rows: int) -> None:
    with h5py.File(path) as file:
        for start in range(0, num_rows, BATCH):
            file["x"][start : start + BATCH]


def _batches(collection: ArrayCollection, num_rows: int) -> None:
    for start in range(0, num_rows, BATCH):
        collection.pixels(range(start, start + BATCH))


def _images(collection: ArrayCollection, num_rows: int) -> None:
    for start in range(0, num_rows, BATCH):
        rows = range(start, start + BATCH)
        collection.prepare(rows)
        for row in rows:
            collection.image(row)


def bench_tree(folder: Path, size: Size) -> Document:
    """Start of an extraction: listing, split, identity, libraries, backbone, self-test, first batch."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "weights.safetensors")
    sources = []
    for number in range(64):  # links to one file are limited
        sources.append(folder / f"{number}.png")
        Image.new("RGB", (32, 32), (number, 0, 0)).save(sources[-1])
    tree = folder / "tree"
    for label in range(size.tree):
        (tree / f"class-{label:04d}").mkdir(parents=True)
        for number in range(size.tree):
            os.link(sources[number % 64], tree / f"class-{label:04d}" / f"{number:06d}.png")
    runs = [
        _start(tree, folder / "weights.safetensors", folder / f"root-{run}") for run in range(size.runs or 3)
    ]
    small = folder / "small"
    for label in range(2):
        (small / str(label)).mkdir(parents=True)
        for number in range(min(100, size.tree**2)):
            os.link(sources[number % 64], small / str(label) / f"{number}.png")
    least = _start(small, folder / "weights.safetensors", folder / "root-small")
    return {
        "files": size.tree**2,
        "seconds": [round(run["seconds"], 1) for run in runs],
        "seconds_of_200_files": round(least["seconds"], 1),
        "peak_megabytes": round(max(run["peak_bytes"] for run in runs) / 1e6),
        "peak_megabytes_of_200_files": round(least["peak_bytes"] / 1e6),
        "samples": int(runs[0]["samples"]),
    }


def _start(tree: Path, weights: Path, root: Path) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-c", START, str(tree), str(weights), str(root)]
    started = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.time() - started
    process.wait()
    found: dict[str, float] = json.loads(line)
    return found | {"seconds": seconds}
