"""``idx:DIR``: the files of MNIST, Fashion-MNIST, EMNIST, KMNIST, packed with gzip or not.

The format: two zero bytes, type, number of dimensions, sizes as big-endian integers, values.
http://yann.lecun.com/exdb/mnist/ (kept at https://web.archive.org/web/2020/http://yann.lecun.com/exdb/mnist/)
"""

import gzip
import re
from pathlib import Path

import numpy as np

from featcache.extract.sources.argument import Argument
from featcache.extract.sources.arrays import Array, ArrayCollection, ArrayPart
from featcache.extract.sources.dataset import DatasetOptions
from featcache.store.errors import DatasetError
from featcache.store.progress import Reporter

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IMAGES = re.compile(r"(?P<before>.*?)(?P<split>[A-Za-z0-9]+)-images[-.]idx3-ubyte(\.gz)?")
_SPLITS = {"t10k": "test"}


def open_idx(argument: Argument, options: DatasetOptions, reporter: Reporter) -> ArrayCollection:
    """Open a folder of IDX files as a dataset.

    Raises:
        RequestError: there is no such folder.
        DatasetError: files are missing, damaged or do not fit together.
    """
    argument.require_fields("classes")
    folder = argument.folder()
    found: dict[str, tuple[Path, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _IMAGES.fullmatch(path.name)
        if match is None:
            continue
        split = _SPLITS.get(match["split"], match["split"])
        if split in found and found[split][0].name.removesuffix(".gz") != path.name.removesuffix(".gz"):
            raise DatasetError(
                f"{folder} holds more than one set: {found[split][0].name} and {path.name}; take them apart"
            )
        # The unpacked file sorts first and is read faster.
        found.setdefault(split, (path, _labels(path)))
    if not found:
        raise DatasetError(
            f"{folder} has no files such as train-images-idx3-ubyte or train-images-idx3-ubyte.gz"
        )
    parts = [
        ArrayPart(split, read_idx(found[split][0]), read_idx(found[split][1]), str(found[split][0]))
        for split in options.own_splits
        if split in found
    ]
    unread = [split for split in found if split not in options.own_splits]
    if not parts:
        raise DatasetError(
            f"{folder} has no split {' or '.join(options.own_splits)}; it has {', '.join(unread)}"
        )
    return ArrayCollection(
        "idx", folder.resolve().name, parts, options.target, argument.names("classes"), unread
    )


def _labels(images: Path) -> Path:
    name = images.name.replace("-images", "-labels").replace("idx3", "idx1").removesuffix(".gz")
    for candidate in (images.with_name(name), images.with_name(f"{name}.gz")):
        if candidate.is_file():
            return candidate
    raise DatasetError(f"{images} has no labels beside it ({name} or {name}.gz)")


def read_idx(path: Path) -> Array:
    """Read one IDX file.

    Raises:
        DatasetError: it is none, or damaged.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); download or copy it again") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise DatasetError(f"{path} is no IDX file (it begins with {content[:4]!r})")
    dtype, rank = np.dtype(_TYPES[content[2]]), content[3]
    shape = tuple(np.frombuffer(content, ">u4", min(rank, (len(content) - 4) // 4), 4).tolist())
    start, size = 4 + 4 * rank, int(np.prod(shape)) * dtype.itemsize
    if len(content) != start + size:
        raise DatasetError(
            f"{path} has {len(content)} bytes, its header says {start + size}; download or copy it again"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
