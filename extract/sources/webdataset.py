"""WebDataset shards: tar files whose members share a key, ``s0001.webp`` and ``s0001.cls``.

Shards are indexed first, so rows are known before an image is decoded and any of them can be read. Where shards lie, in
folders ``train/`` and ``test/`` or by pattern, is `shards`' business.
"""

import io
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.extract.sources.base import Citation, Labels
from featcache.extract.sources.collection import Collection, Listing, indexed_targets, listing_digest
from featcache.extract.sources.decode import EXTENSIONS, decode
from featcache.extract.sources.samples import Texts
from featcache.extract.sources.shard_index import Shard, keep_shard, load_shard
from featcache.extract.sources.tar_index import TarIndex, index_tar
from featcache.store.errors import DatasetError
from featcache.store.progress import Reporter, Silent
from featcache.store.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Targets

if TYPE_CHECKING:
    from PIL.Image import Image

OPEN_SHARDS = 64
"""Descriptors that a process keeps."""
INDEX_THREADS = 4
MAX_LABEL_BYTES = 2**20
CLASS, ARRAY, RECORD = ".cls", ".npy", ".json"


class WebDataset(Collection):
    """Shards of some splits.

    Args:
        name: name of the dataset.
        splits: shards of every split, in order; the one split ``""`` if it has none of its own.
        classes: names of the classes, in label order; it may lack some.
        target: kind of the targets, or ``auto``.
        reporter: watches the indexing.
        citation: licence and citation.
        facts: further parts of the identity.

    Raises:
        DatasetError: a shard is damaged, or samples are not whole; the message names them.
    """

    kind = "wds"

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Sequence[Path]],
        classes: Sequence[str] = (),
        *,
        target: str = "auto",
        unread: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        citation: Citation | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.name = name
        self.citation = citation or Citation()
        self._paths = [path for paths in splits.values() for path in paths]
        shards = _read_all(self._paths, reporter or Silent())
        prefixes = [
            f"{split}/{path.stem}" if split else path.stem
            for split, paths in splits.items()
            for path in paths
        ]
        self._shards = np.repeat(np.arange(len(shards)), [len(shard.keys) for shard in shards])
        self._offsets = np.array([offset for shard in shards for offset in shard.offsets], np.int64)
        self._sizes = np.array([size for shard in shards for size in shard.sizes], np.int64)
        ids = Texts.of(
            f"{prefix}/{key}" for prefix, shard in zip(prefixes, shards, strict=True) for key in shard.keys
        )
        labels, targets = _targets(
            [label for shard in shards for label in shard.labels], classes, target, name
        )
        ends = np.cumsum([len(shard.keys) for shard in shards])
        parts, first, shard_end = {}, 0, 0
        for split, paths in splits.items():
            shard_end += len(paths)
            end = int(ends[shard_end - 1]) if paths else first
            parts[split], first = np.arange(first, end), end
        self.listing = Listing(
            ids,
            labels,
            targets,
            listing_digest(targets.names, ids, self._sizes.tolist(), labels),
            {} if list(splits) == [""] else parts,
            unread,
            _columns([record for shard in shards for record in shard.records]),
            facts or {},
        )
        self._open: OrderedDict[int, int] = OrderedDict()

    def image(self, row: int) -> "Image":
        """Decode one image."""
        where = f"{self.listing.ids[row]} in {self._paths[int(self._shards[row])]}"
        return decode(io.BytesIO(self.content(row)), where)

    def content(self, row: int) -> bytes:
        """The bytes of one image as they are stored.

        Raises:
            DatasetError: its shard is gone, or became shorter.
        """
        shard = int(self._shards[row])
        size, offset = int(self._sizes[row]), int(self._offsets[row])
        content = os.pread(self._descriptor(shard), size, offset)
        if len(content) < size:
            raise DatasetError(
                f"image {self.listing.ids[row]} cannot be read: {self._paths[shard]} became shorter"
            )
        return content

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files out."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _descriptor(self, shard: int) -> int:
        found = self._open.pop(shard, None)
        if found is None:
            try:
                found = os.open(self._paths[shard], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise DatasetError(f"shard {self._paths[shard]} cannot be read ({error.strerror})") from None
            if len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open[shard] = found
        return found

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


def _read_all(paths: Sequence[Path], reporter: Reporter) -> list[Shard]:
    with reporter.progress("indexing", "shards") as update, ThreadPoolExecutor(INDEX_THREADS) as pool:
        shards = []
        try:
            for shard in pool.map(_read, paths):
                shards.append(shard)
                update(len(shards), len(paths))
        finally:
            pool.shutdown(cancel_futures=True)
        return shards


def _read(path: Path) -> Shard:
    try:
        kept = load_shard(path)
        if kept is not None:
            return kept
        index = index_tar(path)
        with path.open("rb") as file:
            shard = _samples(path, index, file.fileno())
    except OSError as error:
        raise DatasetError(f"shard {path} cannot be read ({error.strerror})") from None
    keep_shard(path, shard)
    return shard


def _samples(path: Path, index: TarIndex, descriptor: int) -> Shard:
    """Members by key, keys in the order of the tar; every image with its label and every label with its image."""
    _refuse_odd_names(index.names, path)
    members: dict[str, dict[str, int]] = {}
    for number, name in enumerate(index.names):
        folder, slash, base = name.rpartition("/")
        if base.startswith("."):
            continue
        stem, dot, suffix = base.partition(".")
        own = members.setdefault(f"{folder}{slash}{stem}", {})
        suffix = f"{dot}{suffix}".lower()
        if suffix in own:
            raise DatasetError(
                f"{path}: sample {folder}{slash}{stem} has two members {suffix}; keys must be unique"
            )
        own[suffix] = number
    shard, sizes, offsets = Shard(), index.sizes.tolist(), index.offsets.tolist()
    problems: list[str] = []
    for key, own in members.items():
        images = [suffix for suffix in own if f".{suffix.rpartition('.')[2]}" in EXTENSIONS]
        label = CLASS if CLASS in own else ARRAY if ARRAY in own else None
        if label is None and not images:
            continue  # texts, for example
        if label is None or len(images) != 1:
            problems.append(
                f"{key} has no label (.cls or .npy)"
                if label is None
                else f"{key} has no image"
                if not images
                else f"{key} has {len(images)} images"
            )
            continue
        number = own[images[0]]
        shard.keys.append(key)
        shard.offsets.append(offsets[number])
        shard.sizes.append(sizes[number])
        spot = own[label]
        content = os.pread(descriptor, min(sizes[spot], MAX_LABEL_BYTES), offsets[spot])
        shard.labels.append(_label(content, label, f"{path}: {key}{label}"))
        if RECORD in own:
            record = os.pread(descriptor, min(sizes[own[RECORD]], MAX_LABEL_BYTES), offsets[own[RECORD]])
            shard.records.append(_record(record, f"{path}: {key}{RECORD}"))
        else:
            shard.records.append({})
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DatasetError(f"{path}: {len(problems)} samples are not whole: {'; '.join(problems[:10])}{more}")
    return shard


def _refuse_odd_names(names: Sequence[str], path: Path) -> None:
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        odd = next(name for name in names if any("\ud800" <= one <= "\udfff" for one in name))
        raise DatasetError(f"{path}: the name {odd!r} of a member is not valid UTF-8; rename it") from None


def _label(content: bytes, suffix: str, where: str) -> Any:
    if suffix == ARRAY:
        try:
            array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DatasetError(f"{where} is no array of numbers ({error})") from None
        if array.dtype.kind not in "biuf":
            raise DatasetError(f"{where} is {array.dtype}; labels must be numbers")
        if array.ndim or array.dtype.kind == "f":
            return array.ravel()
        content = str(array.item()).encode()
    try:
        label = int(content)
    except ValueError:
        label = -1
    if label < 0:
        shown = content[:40].decode("utf-8", "backslashreplace")
        raise DatasetError(f"{where} must be an integer from 0, got {shown!r}")
    return label


def _record(content: bytes, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise DatasetError(f"{where} is no JSON object")
    return record


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The fields that all records have."""
    if not records:
        return {}
    names = [name for name in records[0] if all(name in record for record in records)]
    return {name: [record[name] for record in records] for name in names}


def _targets(labels: Sequence[Any], classes: Sequence[str], target: str, name: str) -> tuple[Labels, Targets]:
    """Integers are classes; arrays are 0 or 1 for every class, or real values."""
    if not any(isinstance(label, np.ndarray) for label in labels):
        column = np.array(labels, np.int64)
        if target == REGRESSION:
            return column[:, None].astype(np.float32), Targets(REGRESSION, tuple(classes[:1]) or ("target",))
        return column, indexed_targets(column, classes)
    arrays = [np.asarray(label).ravel() for label in labels]
    if len({len(array) for array in arrays}) > 1:
        raise DatasetError(
            f"{name}: labels are arrays of {min(map(len, arrays))} to {max(map(len, arrays))} values; they must agree"
        )
    table = np.stack(arrays)
    names = (*classes[: table.shape[1]], *(str(index) for index in range(len(classes), table.shape[1])))
    if target != REGRESSION and np.isin(table, (0, 1)).all():
        return table.astype(np.uint8), Targets(MULTI_LABEL, names)
    if target in (MULTI_LABEL, SINGLE_LABEL):
        raise DatasetError(
            f"{name}: labels are arrays with other values than 0 and 1, so they are not {target}"
        )
    return table.astype(np.float32), Targets(REGRESSION, names)
