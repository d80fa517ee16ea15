"""``idx:DIR``: the files of MNIST, Fashion-MNIST, EMNIST, KMNIST, packed with gzip or not.

The format: two zero bytes, type, number of dimensions, sizes as big-endian integers, values.
http://yann.lecun.com/exdb/mnist/ (kept at https://web.archive.org/web/2020/http://yann.lecun.com/exdb/mnist/)
"""

import gzip
import re
import zlib
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from featcache.extraction.sources.argument import Argument
from featcache.extraction.sources.arrays import Array, ArrayCollection, ArrayPart
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.split_names import choose_splits
from featcache.store.errors import DatasetError
from featcache.store.machine import available_memory
from featcache.store.progress import Reporter
from featcache.store.targets import UNLABELED
from featcache.store.unpacking import MAX_RATIO

MAX_RANK = 4
"""Most axes of an array, those of color images."""
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IMAGES = re.compile(r"(?P<before>.*?)(?P<split>[A-Za-z0-9]+)-images[-.]idx[34]-ubyte(\.gz)?")
_SPLITS = {"t10k": "test"}
_STEP_BYTES = 2**24


def open_idx(argument: Argument, options: DatasetOptions, reporter: Reporter) -> ArrayCollection:
    """Open a folder of IDX files as a dataset.

    Raises:
        RequestError: there is no such folder.
        DatasetError: files are missing, damaged or do not fit together.
    """
    argument.require_fields("classes")
    folder = argument.folder()
    files: dict[str, tuple[Path, Path | None]] = {}
    labeled = options.target != UNLABELED
    for path in sorted(folder.iterdir()):
        match = _IMAGES.fullmatch(path.name)
        if match is None:
            continue
        split = _SPLITS.get(match["split"], match["split"])
        if split in files and files[split][0].name.removesuffix(".gz") != path.name.removesuffix(".gz"):
            raise DatasetError(
                f"{folder} holds more than one set: {files[split][0].name} and {path.name}; take them apart"
            )
        # The unpacked file sorts first and is read faster.
        files.setdefault(split, (path, _labels_file(path) if labeled else None))
    if not files:
        below = [path.parent for path in sorted(folder.glob("*/*-images*")) if _IMAGES.fullmatch(path.name)]
        raise DatasetError(
            f"{folder} has no files such as train-images-idx3-ubyte or train-images-idx3-ubyte.gz"
            + (f"; name idx:{below[0]}, which has" if below else "")
        )
    chosen = choose_splits(list(files), options, str(folder))
    parts = []
    for split, spelling in chosen.names.items():
        images, labels = files[spelling]
        parts.append(ArrayPart(split, read_idx(images), read_idx(labels) if labels else None, str(images)))
    return ArrayCollection(
        "idx", folder.resolve().name, parts, options, argument.names("classes"), chosen.unread
    )


def _labels_file(images: Path) -> Path:
    name = re.sub(r"idx[34]", "idx1", images.name.replace("-images", "-labels")).removesuffix(".gz")
    for candidate in (images.with_name(name), images.with_name(f"{name}.gz")):
        if candidate.is_file():
            return candidate
    raise DatasetError(
        f"{images} has no labels beside it ({name} or {name}.gz); --target {UNLABELED} takes the images without"
    )


def read_idx(path: Path) -> Array:
    """Read one IDX file; unpack at most one byte more than its header declares.

    Raises:
        DatasetError: the file is no IDX file, is damaged, or is larger than the memory.
    """
    if not path.is_file():
        raise DatasetError(f"{path} cannot be read (it is no regular file)")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read ({error}); download or copy it again") from None


def _read(file: IO[bytes] | gzip.GzipFile, path: Path) -> Array:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES:
        raise DatasetError(f"{path} is no IDX file (it begins with {head!r})")
    dtype, rank = np.dtype(_TYPES[head[2]]), head[3]
    if not 1 <= rank <= MAX_RANK:
        raise DatasetError(f"{path} is no IDX file of images or labels (it has {rank} axes)")
    sizes = file.read(4 * rank)
    shape = tuple(np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4").tolist())
    size, stored = prod(shape) * dtype.itemsize, path.stat().st_size
    if len(shape) < rank or size > stored * (MAX_RATIO if path.suffix == ".gz" else 1):
        raise DatasetError(
            f"{path} has {stored} bytes, its header says {list(shape)} {dtype}; download or copy it again"
        )
    if size > available_memory():
        raise DatasetError(f"{path} has {size} bytes, more than the memory; store it as HDF5")
    content = bytearray()
    while len(content) <= size and (part := file.read(min(_STEP_BYTES, size + 1 - len(content)))):
        content += part
    if len(content) != size:
        raise DatasetError(
            f"{path} has {'more' if len(content) > size else len(content)} bytes of values, its header says {size}; download or "
            "copy it again"
        )
    values = np.frombuffer(content, dtype).reshape(shape)
    return values.astype(dtype.newbyteorder("="), copy=False)
