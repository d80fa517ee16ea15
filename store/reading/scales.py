"""The scales and offsets of int8 features, which lie beside the splits."""

import os
from pathlib import Path

from featcache.store.arrays import ArrayInfo
from featcache.store.errors import CacheError
from featcache.store.quantization import Scales, read_scales, scale_arrays
from featcache.store.regular_files import open_regular, refuse_link
from featcache.store.zarr_metadata import METADATA_FILE, check_array_metadata


def load_scales(features: Path, array: ArrayInfo) -> Scales:
    """Read the scales of one int8 array from the folder features.zarr.

    Raises:
        CacheError: a file is missing, not a plain one or of another size, its Zarr metadata differ, or a scale is no positive number.
    """
    refuse_link(features)
    files = {}
    for part in scale_arrays([array]):
        folder = features / part.name
        refuse_link(folder)
        check_array_metadata(folder / METADATA_FILE, part)
        path = folder / part.chunk_name(0)
        files[f"{part.name}/{path.name}"] = _content(path, part.chunk_bytes)
    return read_scales(array, files, str(features))


def _content(path: Path, num_bytes: int) -> bytes:
    try:
        descriptor, size = open_regular(path)
    except FileNotFoundError:
        raise CacheError(f"{path}: missing; the cache is damaged, extract it again") from None
    with os.fdopen(descriptor, "rb") as file:
        if size != num_bytes:
            raise CacheError(
                f"{path}: {size} bytes, must be {num_bytes}; the cache is damaged, extract it again"
            )
        return file.read(size)
