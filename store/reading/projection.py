"""The one array of a cache that belongs to no split: the matrix that the model multiplies its pooled token with."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.store.errors import CacheError
from featcache.store.inventory import PROJECTION, Inventory
from featcache.store.regular_files import open_regular, refuse_link
from featcache.store.zarr_metadata import METADATA_FILE, PROJECTION_CHUNK, check_array_metadata


def read_projection(features: Path, inventory: Inventory) -> npt.NDArray[np.float32] | None:
    """Read the matrix ``[D, E]`` from the folder features.zarr; None if the model has none.

    Raises:
        CacheError: the file is missing, not a plain one or of another size, or its Zarr metadata differ.
    """
    array, path = inventory.projection_array, features / PROJECTION_CHUNK
    if array is None:
        return None
    refuse_link(features)
    refuse_link(path.parent)
    check_array_metadata(features / PROJECTION / METADATA_FILE, array)
    try:
        descriptor, size = open_regular(path)
    except FileNotFoundError:
        raise CacheError(f"{path}: missing; the cache is damaged, extract it again") from None
    with os.fdopen(descriptor, "rb") as file:
        if size != array.chunk_bytes:
            raise CacheError(f"{path}: {size} bytes, must be {array.chunk_bytes}; extract it again")
        return np.frombuffer(file.read(size), "<f4").reshape(array.shape)
