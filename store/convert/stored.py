"""Values of any type as a cache stores them."""

import numpy as np

from featcache.store.arrays import DTYPES
from featcache.store.errors import DatasetError
from featcache.store.reading.chunks import Array
from featcache.store.reading.reader import as_float32
from featcache.store.spec import FLOAT_DTYPES


def choose_stored_type(dtype: str, where: str, requested: str | None) -> str:
    """Return the stored type for features of type `dtype`; `where` names them in errors.

    Raises:
        DatasetError: the type of the array cannot be stored as it is, or not at all.
    """
    bits = dtype == "uint16" and requested == "bfloat16"
    if dtype in FLOAT_DTYPES or bits or (dtype == "float64" and requested):
        return requested or dtype
    remedy = f"features must be {', '.join(FLOAT_DTYPES)}"
    if dtype == "float64":
        remedy = "add --dtype float32 to convert it"
    if dtype == "uint16":
        remedy += "; if these are the bits of bfloat16, add --dtype bfloat16"
    raise DatasetError(f"{where} is {dtype}; {remedy}")


def to_stored_type(values: Array, dtype: str, stored: str) -> Array:
    """Convert features of type `dtype` to the stored type, bfloat16 as its bits."""
    if dtype == stored or (dtype, stored) == ("uint16", "bfloat16"):
        return values.astype(DTYPES[stored].stored, copy=False)
    with np.errstate(over="ignore"):
        wide = values.astype(np.float32) if dtype == "float64" else as_float32(values, dtype)
        if stored != "bfloat16":
            return wide.astype(DTYPES[stored].stored)
    bits = wide.view(np.uint32)
    # To the nearest, ties to even, as torch rounds.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
