"""The scales of int8 features while a cache is written: they are fitted once, and their files exist before the plan that names them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from featcache.store.arrays import ArrayInfo
from featcache.store.errors import CacheError
from featcache.store.files import sha256_hex, write_atomic
from featcache.store.journal import Plan
from featcache.store.manifest import FileRecord
from featcache.store.quantization import PARTS, Scales, chunk_path
from featcache.store.regular_files import sha256_regular

Fit = Callable[[Sequence[ArrayInfo]], Mapping[str, Scales]]
"""Fits the scales of some arrays, by the array's name."""


def with_scales(features: Path, plan: Plan, held: Mapping[str, FileRecord], fit: Fit | None) -> Plan:
    """Return a new plan with the scales of its int8 arrays, fitted and written.

    Args:
        features: the folder features.zarr.
        plan: what is going to be written.
        held: the metadata files of the complete cache that is added to; arrays whose scales are among them keep them.
        fit: fits scales.
    """
    arrays = [
        array for name, array in plan.inventory.int8_arrays.items() if chunk_path(PARTS[0], name) not in held
    ]
    return replace(plan, scales=_write(features, arrays, fit)) if arrays else plan


def require_scales(features: Path, plan: Plan, held: Mapping[str, FileRecord], fit: Fit | None) -> None:
    """Check the files of all scales that are needed; fit lost ones again, which must give the same bytes.

    Raises:
        CacheError: a file is damaged, and fitting does not give its values again.
    """
    for array in plan.inventory.int8_arrays.values():
        records = {path: plan.scales.get(path) or held.get(path) for path in _paths(array)}
        lost = [path for path, record in records.items() if not _holds(features / path, record)]
        if not lost:
            continue
        if fit is None or _write(features, [array], fit) != records:
            raise CacheError(
                f"{features / lost[0]}: the scales of int8 features are damaged, and fitting them gives other values; remove "
                f"the cache and extract it again: featcache rm {features.parent}"
            )


def _write(features: Path, arrays: Sequence[ArrayInfo], fit: Fit | None) -> dict[str, FileRecord]:
    if fit is None:
        raise ValueError("the plan has int8 arrays, but nothing fits their scales")
    records = {}
    for name, scales in fit(arrays).items():
        for path, content in scales.documents(name).items():
            (features / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(features / path, content)
            records[path] = FileRecord(len(content), sha256_hex(content))
    return records


def _paths(array: ArrayInfo) -> list[str]:
    return [chunk_path(part, array.name) for part in PARTS]


def _holds(path: Path, record: FileRecord | None) -> bool:
    return record is not None and record.mismatch(path) is None and sha256_regular(path) == record.sha256
