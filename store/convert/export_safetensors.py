"""One safetensors file per split, with native bfloat16; written as a stream, which the library itself cannot.

The format: 8 bytes header length (little-endian), a JSON header ``{name: {dtype, shape, data_offsets}}``, and the bare
little-endian bytes without holes. https://github.com/huggingface/safetensors#format
"""

import json
import struct
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from featcache.store.convert.outputs import atomic_folder
from featcache.store.convert.selection import Part
from featcache.store.errors import RequestError
from featcache.store.files import JsonObject
from featcache.store.progress import Update
from featcache.store.reading.chunks import Array
from featcache.store.reading.reader import Cache

TYPES = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "int64": "I64",
    "uint8": "U8",
    "bool": "BOOL",
}
ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "I64": 8, "U8": 1, "BOOL": 1}
MAX_HEADER_BYTES = 100_000_000


def export_safetensors(cache: Cache, parts: Sequence[Part], path: Path, update: Update) -> None:
    """Write ``<split>.safetensors`` with ``layer.<name>`` ``[N, K, D]`` for every layer, label, sample_id and valid.

    Raises:
        RequestError: the header would be longer than the format allows.
    """
    total = sum(len(part.layers) * part.num_samples for part in parts)
    done = 0
    with atomic_folder(path) as partial:
        update(0, total)
        for part in parts:
            columns = part.columns()
            with (partial / f"{part.name}.safetensors").open("wb") as file:
                file.write(_header(cache, part, columns))
                # The widest type first: then every tensor begins at a multiple of its own width.
                if _label_first(columns):
                    file.write(columns["label"].tobytes())
                for layer in part.layers:
                    for _, _, values in part.read([layer]):
                        file.write(np.ascontiguousarray(values).data.cast("B"))
                    done += part.num_samples
                    update(done, total)
                if "label" in columns and not _label_first(columns):
                    file.write(columns["label"].tobytes())
                file.write(columns["sample_id"].tobytes())
                file.write(columns["valid"].tobytes())


def _header(cache: Cache, part: Part, columns: dict[str, Array]) -> bytes:
    rows = part.num_samples
    feature_shape = (rows, len(part.tokens), part.reader.width)
    label = [("label", part.label.dtype, columns["label"].shape)] if part.label else []
    first = _label_first(columns)
    tensors: list[tuple[str, str, tuple[int, ...]]] = [
        *(label if first else []),
        *((f"layer.{layer}", part.dtype, feature_shape) for layer in part.layers),
        *([] if first else label),
        ("sample_id", "uint8", columns["sample_id"].shape),
        ("valid", "bool", (rows,)),
    ]
    header: JsonObject = {"__metadata__": _metadata(cache, part)}
    offset = 0
    for name, dtype, shape in tensors:
        kind = TYPES[dtype]
        end = offset + prod(shape) * ITEM_BYTES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise RequestError(f"the header of {part.name}.safetensors would have {len(text)} bytes; use --to h5")
    return struct.pack("<Q", len(text)) + text


def _label_first(columns: dict[str, Array]) -> bool:
    return "label" in columns and columns["label"].dtype.itemsize > 1


def _metadata(cache: Cache, part: Part) -> dict[str, str]:
    """Return the metadata of the file; the format allows strings only."""
    return {
        "format": "featcache-export",
        "key": cache.key,
        "split": part.name,
        "layers": json.dumps(part.layers),
        "tokens": json.dumps(part.tokens),
        "class_names": json.dumps(cache.inventory.class_names, ensure_ascii=False),
        **{name: json.dumps(value) for name, value in cache.inventory.targets.to_dict().items()},
        "spec": json.dumps(cache.spec.to_dict(), ensure_ascii=False),
    }
