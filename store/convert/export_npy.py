"""A folder with one .npy file per split and layer: the simplest thing that numpy maps."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from featcache.store.convert.document import ExportDocument
from featcache.store.convert.outputs import atomic_folder
from featcache.store.convert.selection import Part
from featcache.store.convert.steps import ContentDigest
from featcache.store.layers import FINAL
from featcache.store.progress import Update
from featcache.store.reading.reader import Cache

META_FILE = "meta.json"
LABELS, IDS, VALID = "labels.npy", "sample_ids.npy", "valid.npy"


def layer_file(layer: str) -> str:
    """Return the file name of a layer, such as ``layer_03.npy`` or ``layer_final.npy``."""
    return f"layer_{layer}.npy" if layer == FINAL else f"layer_{int(layer):02d}.npy"


def export_npy(cache: Cache, parts: Sequence[Part], path: Path, update: Update) -> None:
    """Write ``<split>/layer_03.npy`` ``[N, K, D]`` for every layer, labels if there are any, ids, valid, and meta.json.

    numpy has no bfloat16: its bits are stored as uint16, and meta.json says so.
    """
    total = sum(len(part.layers) * part.num_samples for part in parts)
    done, digests = 0, {}
    with atomic_folder(path) as partial:
        update(0, total)
        for part in parts:
            folder = partial / part.name
            folder.mkdir()
            digest = ContentDigest(part.layers)
            for layer in part.layers:
                with (folder / layer_file(layer)).open("wb") as file:
                    _write_layer(file, part, layer, digest)
                done += part.num_samples
                update(done, total)
            columns = part.columns()
            if "label" in columns:
                np.save(folder / LABELS, columns["label"])
            np.save(folder / IDS, np.array(part.reader.sample_ids()))
            np.save(folder / VALID, columns["valid"])
            digests[part.name] = digest.hexdigest(part.tokens, columns)
        document = {**ExportDocument.of(cache, parts, digests).to_dict(), "dtype": parts[0].dtype}
        text = json.dumps(document, indent=1, ensure_ascii=False)
        (partial / META_FILE).write_text(text + "\n", encoding="utf-8")


def _write_layer(file: BinaryIO, part: Part, layer: str, digest: ContentDigest) -> None:
    shape = (part.num_samples, len(part.tokens), part.reader.width)
    header = {"descr": part.stored_dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for _, _, values in part.read([layer]):
        digest.update([layer], values)
        file.write(np.ascontiguousarray(values).data.cast("B"))
