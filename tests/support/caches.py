"""Small caches with known content, written through the real writer."""

import time
from pathlib import Path

import numpy as np

from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.planning import plan_split
from featcache.store.reading.reader import Cache, open_cache
from featcache.store.spec import BackboneSpec, CacheSpec
from featcache.store.targets import Targets
from featcache.store.writing.block import BlockWriter
from featcache.store.writing.writer import CacheWriter

Content = dict[str, dict[str, np.ndarray]]
PROVENANCE = {"completed_at": 1.0}
"""Provenance of a cache that is compared with another byte for byte."""


def make_spec(num_layers=3, width=4, dtype="float16", **changes) -> CacheSpec:
    backbone = BackboneSpec(
        architecture="timm:tiny",
        weights_digest="0" * 64,
        num_layers=num_layers,
        width=width,
        input_size=32,
        preprocessing={"interpolation": "bicubic"},
    )
    return CacheSpec(backbone, {"kind": "made", **changes}, dtype, "fp32")


def make_plan(
    samples=None,
    *,
    num_layers=3,
    width=4,
    tokens=("cls", "ap"),
    dtype="float16",
    num_classes=3,
    target_kind="single-label",
    batch_size=32,
    **changes,
) -> Plan:
    """A plan for `samples`, rows per split; by default two splits, the first of three blocks."""
    samples = samples or {"train": 300, "test": 90}
    layers = [str(layer) for layer in range(num_layers)]
    names = () if target_kind == "none" else tuple(f"class {c}" for c in range(num_classes))
    units = ("mm",) * num_classes if target_kind == "regression" else ()
    targets = Targets(target_kind, names, units)
    splits = {
        name: plan_split(
            name,
            rows,
            layers=layers,
            tokens=tokens,
            width=width,
            dtype=dtype,
            sample_id_bytes=12,
            targets=targets,
        )
        for name, rows in samples.items()
    }
    spec = make_spec(num_layers, width, dtype, **changes)
    return Plan(spec, Inventory(splits, names, target_kind=target_kind, units=units), batch_size)


def make_content(plan: Plan, seed=0) -> Content:
    """Random values for every array of every split, in the stored types."""
    rng = np.random.default_rng(seed)
    content: Content = {}
    for split in plan.inventory.splits.values():
        columns = {}
        for array in split.arrays.values():
            if array.name == "label" and array.dtype == "uint8":
                values = rng.integers(0, 2, array.shape)
            elif array.name == "label" and array.dtype == "int64":
                values = np.arange(split.num_samples) % len(plan.inventory.class_names)
            elif array.name == "sample_id":
                ids = [f"{split.name}-{row}".encode().ljust(12, b"\0") for row in range(split.num_samples)]
                values = np.frombuffer(b"".join(ids), np.uint8).reshape(array.shape)
            elif array.name == "valid":
                values = np.ones(array.shape)
            elif array.dtype == "bfloat16":
                # Only exponents of ordinary numbers, so that comparisons are not all about NaN.
                values = rng.integers(0x3000, 0x4F00, array.shape)
            else:
                values = rng.standard_normal(array.shape)
            columns[array.name] = values.astype(array.stored_dtype)
        content[split.name] = columns
    return content


def write_blocks(writer: CacheWriter, content: Content, batch_size: int | None = None) -> None:
    """Write what is pending."""
    while (block := writer.claim()) is not None:
        fill_block(block, content, batch_size or writer.plan.batch_size)
        writer.commit(block)


def fill_block(writer: BlockWriter, content: Content, batch_size: int, pause_s: float = 0.0) -> None:
    """Append the rows that a claimed block lacks."""
    block = writer.block
    for start in range(block.start + writer.rows, block.stop, batch_size):
        stop = min(start + batch_size, block.stop)
        writer.append({name: values[start:stop] for name, values in content[block.split].items()})
        time.sleep(pause_s)


def write_cache(directory: Path, plan: Plan, content: Content, provenance=None) -> Cache:
    """Write a complete cache and open it."""
    with CacheWriter(directory, plan) as writer:
        write_blocks(writer, content)
        writer.finish(
            provenance or {"model_names": ["tiny"], "dataset_names": ["made"], "completed_at": 1.0},
            "# card\n",
        )
    return open_cache(directory)


def check_partial(cache: Cache, content: Content) -> int:
    """Every block is there with the right rows or not at all, in all arrays; returns the rows that are there."""
    rows = 0
    for name, columns in content.items():
        split = cache[name]
        valid = split.valid()
        for block in cache.inventory.splits[name].blocks():
            assert len(set(valid[block.start : block.stop])) == 1, f"a part of {block} is valid"
        features = split.load(split.layers, split.tokens)
        assert np.isnan(features[~valid]).all()
        np.testing.assert_array_equal(features[valid][:, :-1], columns["norm2"][valid])
        np.testing.assert_array_equal(features[valid][:, -1:], columns["final"][valid])
        np.testing.assert_array_equal(split.labels()[valid], columns["label"][valid])
        rows += int(valid.sum())
    return rows


def cache_folder(root: Path, plan: Plan, dataset="made", model="tiny") -> Path:
    """Return the folder of a cache of this plan under a root."""
    return root / dataset / f"{model}-{plan.spec.key}"


def all_files(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` with its bytes."""
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()
    }


def flip(path: Path, bit: int = 800) -> None:
    """Flip one bit of a file; counted from its beginning again where it is shorter."""
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


__all__ = [
    "PROVENANCE",
    "all_files",
    "cache_folder",
    "check_partial",
    "flip",
    "make_content",
    "make_plan",
    "make_spec",
    "write_blocks",
    "write_cache",
]
