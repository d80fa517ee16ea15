"""WebDataset shards: tar files whose members share a key, ``s0001.webp`` and ``s0001.cls``.

Shards are indexed first, so rows are known before an image is decoded and any of them can be read. Where shards lie, in
folders ``train/`` and ``test/`` or by pattern, is `shards`' business.
"""

import errno
import io
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.extraction.sources.array_labels import InferredTargets, unlabeled_targets
from featcache.extraction.sources.base import Citation
from featcache.extraction.sources.collection import (
    Collection,
    Listing,
    listing_digest,
    refuse_repeated,
    unlabeled_note,
)
from featcache.extraction.sources.decode import decode
from featcache.extraction.sources.image_formats import EXTENSIONS, added_formats
from featcache.extraction.sources.image_tree import refuse_irregular
from featcache.extraction.sources.samples import Texts
from featcache.extraction.sources.shard_index import Shard, keep_shard, load_shard
from featcache.extraction.sources.shards import shard_names
from featcache.extraction.sources.tar_index import LINKS_LEFT_OUT, TarIndex, index_tar
from featcache.extraction.sources.wds_labels import (
    RECORD,
    LabelMember,
    common_columns,
    label_targets,
    read_record,
)
from featcache.store.errors import DatasetError, UnavailableError
from featcache.store.progress import Reporter, Silent
from featcache.store.targets import UNLABELED

if TYPE_CHECKING:
    from PIL.Image import Image

OPEN_SHARDS = 64
"""Descriptors that a process keeps."""
INDEX_THREADS = 4
MAX_LABEL_BYTES = 2**20
_USUAL_LABEL = LabelMember()


@dataclass(frozen=True)
class SampleReading:
    """What is read of the members of every sample."""

    image: str | None
    """Key of the image; its only image if None."""
    label: LabelMember | None
    """Where the label stands; None if labels are not read."""

    @property
    def key(self) -> str:
        """Text that tells the index of a shard that is read in one way from those that are read in others."""
        label = "none" if self.label is None else self.label.name or ""
        added = f" formats={','.join(formats)}" if (formats := added_formats()) else ""
        return (f"{self.image or ''} label={label}" if label else self.image or "") + added


class WebDataset(Collection):
    """Shards of some splits.

    Args:
        name: name of the dataset.
        splits: shards of every split, in order; the one split ``""`` if it has none of its own.
        classes: names of the classes, in label order; it may lack some.
        target: kind of the targets, or ``auto``.
        label: where the label of a sample stands.
        reporter: watches the indexing.
        unread: splits that exist and were not requested.
        image: key of the image of every sample, such as ``jpg`` or ``seg.png``; its only image if None.
        citation: license and citation.
        facts: further parts of the identity.

    Raises:
        DatasetError: a shard is damaged, or samples are incomplete; the message names them.
    """

    source_type = "wds"

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Sequence[Path]],
        classes: Sequence[str] = (),
        *,
        target: str = "auto",
        label: LabelMember = _USUAL_LABEL,
        unread: Sequence[str] = (),
        image: str | None = None,
        facts: Mapping[str, Any] | None = None,
        citation: Citation | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.name = name
        self.citation = citation or Citation()
        self._paths = [path for paths in splits.values() for path in paths]
        image = image.lower().removeprefix(".") if image else None
        self._states = [_state(path) for path in self._paths]
        reading = SampleReading(image, None if target == UNLABELED else label)
        shards = _read_all(self._paths, reading, reporter or Silent())
        prefixes = [
            f"{split}/{stem}" if split else stem
            for split, paths in splits.items()
            for stem in shard_names(paths)
        ]
        self._shards = np.repeat(np.arange(len(shards)), [len(shard.keys) for shard in shards])
        self._offsets = np.array([offset for shard in shards for offset in shard.offsets], np.int64)
        self._sizes = np.array([size for shard in shards for size in shard.sizes], np.int64)
        ids = Texts.of(
            f"{prefix}/{key}" for prefix, shard in zip(prefixes, shards, strict=True) for key in shard.keys
        )
        refuse_repeated(ids, name)
        inferred = self._targets(shards, classes, target)
        ends = np.cumsum([len(shard.keys) for shard in shards])
        parts, first, shard_end = {}, 0, 0
        for split, paths in splits.items():
            shard_end += len(paths)
            end = int(ends[shard_end - 1]) if paths else first
            parts[split], first = np.arange(first, end), end
        self.listing = Listing(
            ids,
            inferred.labels,
            inferred.targets,
            listing_digest(inferred.targets.names, ids, self._sizes.tolist(), inferred.labels),
            {} if list(splits) == [""] else parts,
            unread,
            common_columns([record for shard in shards for record in shard.records]),
            {
                **(facts or {}),
                **({"image": image} if image else {}),
                **({"label": label.name} if label.name and target != UNLABELED else {}),
            },
            inferred.notes,
            dict(sum((Counter(shard.left_out) for shard in shards), Counter())),
        )
        self._open: OrderedDict[int, int] = OrderedDict()

    def _targets(self, shards: Sequence[Shard], classes: Sequence[str], target: str) -> InferredTargets:
        """Return labels and targets; none where no shard has a label, with a note if nobody said so.

        Raises:
            DatasetError: some shards have labels and others none, or labels are no such targets.
        """
        labels = [label for shard in shards for label in shard.labels]
        count = sum(len(shard.keys) for shard in shards)
        if count and not labels:
            return unlabeled_targets(count, [] if target == UNLABELED else [unlabeled_note(self.name)])
        if len(labels) < count:
            lacking = next(
                path
                for path, shard in zip(self._paths, shards, strict=True)
                if len(shard.labels) < len(shard.keys)
            )
            raise DatasetError(
                f"{lacking}: samples have no label, and those of other shards have; --target {UNLABELED} reads none"
            )
        return label_targets(labels, classes, target, self.name)

    def files(self, rows: Sequence[int]) -> Iterable[str | Path]:
        """Return the shards."""
        return self._paths

    def row_places(self, rows: Sequence[int]) -> Iterable[tuple[str | Path, object]]:
        """Return the shard of each of `rows`, and where in the shard its image begins."""
        return ((self._paths[int(self._shards[row])], int(self._offsets[row])) for row in rows)

    def image(self, row: int) -> "Image":
        """Decode one image."""
        where = f"{self.listing.ids[row]} in {self._paths[int(self._shards[row])]}"
        return decode(io.BytesIO(self.content(row)), where)

    def content(self, row: int) -> bytes:
        """Return the bytes of one image as they are stored.

        Raises:
            UnavailableError: its shard is gone, or became shorter.
        """
        shard = int(self._shards[row])
        size, offset = int(self._sizes[row]), int(self._offsets[row])
        content = os.pread(self._descriptor(shard), size, offset)
        if len(content) < size:
            raise UnavailableError(
                f"image {self.listing.ids[row]} cannot be read: {self._paths[shard]} became shorter"
            )
        return content

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files out."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _descriptor(self, shard: int) -> int:
        descriptor = self._open.pop(shard, None)
        if descriptor is None:
            try:
                descriptor = self._opened(self._paths[shard])
                changed = _state(descriptor) != self._states[shard]
            except OSError as error:
                raise UnavailableError(
                    f"shard {self._paths[shard]} cannot be read ({error.strerror}); once it is there again, the same command "
                    "resumes"
                ) from error
            if changed:  # offsets in one file mean nothing in another
                os.close(descriptor)
                raise UnavailableError(f"{self._paths[shard]} has changed since it was indexed; start again")
            if len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open[shard] = descriptor
        return descriptor

    def _opened(self, path: Path) -> int:
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            return os.open(path, flags)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                raise
        # The process has no descriptor left; shards that are closed now can be opened again later.
        while self._open:
            os.close(self._open.popitem()[1])
        return os.open(path, flags)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


def _state(file: Path | int) -> tuple[int, int] | None:
    """Return the size in bytes and time of change of a file; None if the file does not exist."""
    try:
        state = os.stat(file)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _read_all(paths: Sequence[Path], reading: SampleReading, reporter: Reporter) -> list[Shard]:
    with reporter.progress("indexing", "shards") as update, ThreadPoolExecutor(INDEX_THREADS) as pool:
        shards = []
        try:
            for shard in pool.map(_read, paths, repeat(reading)):
                shards.append(shard)
                update(len(shards), len(paths))
        finally:
            pool.shutdown(cancel_futures=True)
        return shards


def _read(path: Path, reading: SampleReading) -> Shard:
    try:
        refuse_irregular(path.stat().st_mode, path)  # opening a named pipe waits forever
        kept = load_shard(path, reading.key)
        if kept is not None:
            return kept
        index = index_tar(path)
        with path.open("rb") as file:
            shard = _samples(path, index, file.fileno(), reading)
    except OSError as error:
        raise DatasetError(f"shard {path} cannot be read ({error.strerror})") from None
    keep_shard(path, shard, reading.key)
    return shard


def _samples(path: Path, index: TarIndex, descriptor: int, reading: SampleReading) -> Shard:
    """Return members by key, keys in the order of the tar; every image with its label, if any, and every label with its image."""
    _refuse_odd_names(index.names, path)
    shard, sizes, offsets = Shard(), index.sizes.tolist(), index.offsets.tolist()
    left_out = Counter(index.left_out)
    problems: dict[str, str] = {}
    members, image = _members_by_key(path, index.names, left_out), reading.image
    labeled = reading.label is not None and not _are_plainly_unlabeled(members.values())
    member = reading.label or _USUAL_LABEL
    for key, own in members.items():
        images = [suffix for suffix in own if _is_image(suffix)]
        if image is not None:
            images = [f".{image}"] if f".{image}" in own else []
        label = member.suffix(own) if labeled else None
        if label is None and not images:  # texts, for example
            left_out.update(f".{suffix.rpartition('.')[2]}" if suffix else "no extension" for suffix in own)
            continue
        if (labeled and label is None) or len(images) != 1:
            problems[key] = _problem(key, label, images, image, member if labeled else None)
            continue
        number = own[images[0]]
        shard.keys.append(key)
        shard.offsets.append(offsets[number])
        shard.sizes.append(sizes[number])
        if label is not None:
            spot = own[label]
            content = os.pread(descriptor, min(sizes[spot], MAX_LABEL_BYTES), offsets[spot])
            shard.labels.append(member.read(content, label, f"{path}: {key}{label}"))
        if RECORD in own:
            record = os.pread(descriptor, min(sizes[own[RECORD]], MAX_LABEL_BYTES), offsets[own[RECORD]])
            shard.records.append(read_record(record, f"{path}: {key}{RECORD}"))
        else:
            shard.records.append({})
    _refuse_problems(path, problems, members, LINKS_LEFT_OUT in left_out)
    shard.left_out = dict(left_out)
    return shard


def _members_by_key(path: Path, names: Sequence[str], left_out: Counter[str]) -> dict[str, dict[str, int]]:
    """Number of every member by key and suffix, in the order of the tar."""
    members: dict[str, dict[str, int]] = {}
    for number, name in enumerate(names):
        folder, slash, base = name.rpartition("/")
        if base.startswith("."):
            if _is_image(base) and not base.startswith("._"):
                left_out["hidden files"] += 1
            continue
        stem, dot, suffix = base.partition(".")
        own = members.setdefault(f"{folder}{slash}{stem}", {})
        suffix = f"{dot}{suffix}".lower()
        if suffix in own:
            raise DatasetError(
                f"{path}: sample {folder}{slash}{stem} has two members {suffix}; keys must be unique"
            )
        own[suffix] = number
    return members


def _are_plainly_unlabeled(samples: Iterable[Mapping[str, int]]) -> bool:
    """Return whether samples have images alone, so that no member could hold a label."""
    return all(_is_image(suffix) for own in samples for suffix in own)


def _is_image(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2].lower()}" in EXTENSIONS


def _problem(
    key: str, label: str | None, images: Sequence[str], image: str | None, member: LabelMember | None
) -> str:
    if label is None and member is not None:
        return f"{key} has no label ({f'.{member.name}' if member.name else '.cls or .npy'})"
    if not images:
        return f"{key} has no image{f' .{image}' if image else ''}"
    return f"{key} has {len(images)} images"


def _refuse_problems(
    path: Path, problems: Mapping[str, str], members: Mapping[str, Mapping[str, int]], links: bool
) -> None:
    """Refuse incomplete samples; the error has the members of the first one and a suggestion."""
    if not problems:
        return
    key, first = next(iter(problems.items()))
    more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
    hint = f"; {key} has {', '.join(suffix for suffix in members[key] if suffix)[:200]}"
    images = [suffix.removeprefix(".") for suffix in members[key] if _is_image(suffix)]
    if "images" in first:
        hint += f": choose one as in wds:...?image={images[0]}"
    elif links:
        hint += ", and the file has links to files that are not in it"
    elif RECORD in members[key] and "label" in first:
        hint += (
            f": if a field of the JSON is the label, name it as in wds:...?label=json.FIELD; --target {UNLABELED} takes the images "
            "without labels"
        )
    elif "label" in first:
        hint += f"; --target {UNLABELED} takes the images without labels"
    listed = "; ".join([*problems.values()][:10])
    raise DatasetError(f"{path}: {len(problems)} samples are not whole: {listed}{more}{hint}")


def _refuse_odd_names(names: Sequence[str], path: Path) -> None:
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        odd = next(name for name in names if any("\ud800" <= character <= "\udfff" for character in name))
        raise DatasetError(f"{path}: the name {odd!r} of a member is not valid UTF-8; rename it") from None
    if any("\0" in name for name in names):
        cut = next(name for name in names if "\0" in name)
        raise DatasetError(f"{path}: the name {cut[:100]!r} of a member has a NUL character; rename it")
