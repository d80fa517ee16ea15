"""The index of a shard, kept for the next time: hundreds of gigabytes of shards take minutes to walk."""

import io
import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.extraction.sources.data_folders import derived_path
from featcache.extraction.sources.samples import Texts
from featcache.store.files import atomic_file

KEEP_FROM_BYTES = 64 * 2**20
"""Smaller shards are walked as fast as their index is read."""


@dataclass
class Shard:
    """The samples of one shard."""

    keys: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """Where the image begins."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of the image."""
    labels: list[Any] = field(default_factory=list)
    """Index or name of a class, or an array; empty if samples have no labels."""
    records: list[Mapping[str, Any]] = field(default_factory=list)
    """The JSON record of every sample; empty where there is none."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of members that belong to no sample, by type."""


def load_shard(path: Path, reading: str = "") -> Shard | None:
    """Return the stored index of this very file, by path, size and time of change; None if there is none.

    Args:
        path: path of the shard.
        reading: what was read of its samples, as text: which image, and which label.
    """
    kept = _place(path, reading)
    if kept is None or not kept.is_file():
        return None
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            texts = Texts(arrays["keys"].tobytes(), arrays["ends"])
            labels = arrays["labels"]
            return Shard(
                list(texts),
                arrays["offsets"].tolist(),
                arrays["sizes"].tolist(),
                labels.tolist() if labels.ndim == 1 else list(labels),
                json.loads(arrays["records"].tobytes()) or [{}] * len(texts),
                json.loads(arrays["left_out"].tobytes()),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # it is only a shortcut
        return None


def keep_shard(path: Path, shard: Shard, reading: str = "") -> None:
    """Store the index of a large shard, if possible; see `load_shard`."""
    kept = _place(path, reading)
    forms = {(type(label), np.shape(label)) for label in shard.labels}
    if kept is None or len(forms) > 1:
        return
    texts = Texts.of(shard.keys)
    records = json.dumps(shard.records if any(shard.records) else []).encode()
    content = io.BytesIO()
    np.savez(
        content,
        keys=np.frombuffer(texts.data, np.uint8),
        ends=np.cumsum(texts.lengths),
        offsets=np.array(shard.offsets, np.int64),
        sizes=np.array(shard.sizes, np.int64),
        labels=np.array(shard.labels),
        records=np.frombuffer(records, np.uint8),
        left_out=np.frombuffer(json.dumps(shard.left_out).encode(), np.uint8),
    )
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(kept, durable=False) as partial:
            partial.write_bytes(content.getvalue())


def _place(path: Path, reading: str) -> Path | None:
    state = path.stat()
    if state.st_size < KEEP_FROM_BYTES:
        return None
    # The number is the version of the rules that make samples of members.
    state_text = f"2 {reading} {path.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
    return derived_path("index", state_text, f"{path.stem}.npz")
