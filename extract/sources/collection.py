"""Interface of one source file: all samples of a place, with the dataset's own splits if it has any.

How that becomes the splits of an extraction is the same for all of them: `SplitDataset`. Shapes: N samples in all.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featcache.extraction.sources.base import Citation, Labels, Rows
from featcache.extraction.sources.samples import Texts
from featcache.store.errors import DatasetError, RequestError, UnknownNameError
from featcache.store.targets import MAX_CLASSES, SINGLE_LABEL, UNLABELED, Targets
from featcache.store.text import encodable

if TYPE_CHECKING:
    from PIL.Image import Image


NO_TARGETS = Targets(UNLABELED, ())


@dataclass
class Listing:
    """The samples of a collection."""

    ids: Texts
    """N ids, unique."""
    labels: Labels
    """``[N, ...]`` in the stored type of `targets`."""
    targets: Targets
    digest: str
    """SHA-256 over what fixes content, order and labels."""
    parts: Mapping[str, Rows] = field(default_factory=dict)
    """Rows of its own splits, in order; empty if it has none."""
    unread: Sequence[str] = ()
    """Splits that are there and were not asked for."""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Further columns of N values, by which samples can be grouped."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the identity, such as repository and revision."""
    notes: Sequence[str] = ()
    """Notes for people who use the dataset."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Number of files or entries that were not read, by type: ``.txt``, ``hidden files``."""

    def drop_labels(self, where: str) -> None:
        """Take the samples without their labels, as ``--target none`` asks; `where` names the dataset in the note."""
        self.labels, self.targets = no_labels(len(self.ids)), NO_TARGETS
        self.notes = [*self.notes, f"the labels of {where} are not read (--target {UNLABELED})"]


class Collection(ABC):
    """All that a place holds. Picklable: worker processes read images from it."""

    source_type: str
    """Name of the source type on the command line, such as ``wds``."""
    name: str
    """Name for people and folders."""
    listing: Listing
    citation: Citation = Citation()

    @abstractmethod
    def image(self, row: int) -> "Image":
        """Decode one image.

        Raises:
            DatasetError: it does not decode; the message names it.
        """

    containers: Sequence[Path] = ()
    """Files at the dataset's path, which together hold all rows; empty if the dataset has no path."""
    may_be_turned: bool = True
    """Whether images may carry an EXIF orientation; see `Source.may_be_turned`."""
    takes_channels: bool = False
    """Whether images may have another number of channels than three, by the option for it."""
    one_file_a_row: ClassVar[bool] = False
    """True if every row has a file of its own."""

    def files(self, rows: Sequence[int]) -> Iterable[str | Path]:
        """Return the files that images are read from: one for each of `rows`, or all files that together hold the rows.

        By default these are the files at the path that the dataset was opened with.
        """
        return self.containers

    def row_places(self, rows: Sequence[int]) -> Iterable[tuple[str | Path, object]] | None:
        """Return the file of each of `rows` and its place in the file; None if rows do not stand in files of their own.

        By default there are places where every row has a file of its own.
        """
        return ((path, "") for path in self.files(rows)) if self.one_file_a_row else None

    def prepare(self, rows: Sequence[int]) -> None:
        """Prefetch hint: these rows are read next, in this order; ignored by default."""
        return


def listing_digest(
    names: Iterable[str], ids: Sequence[str], contents: Iterable[object], labels: Labels
) -> str:
    """Return SHA-256 over names and the sorted list of (id, content, label); content is a size or a digest."""
    digest = hashlib.sha256("\0".join(names).encode() + b"\n")
    shown = labels.tolist() if labels.ndim == 1 else [row.tobytes().hex() for row in labels]
    entries: Iterable[tuple[str, object, object]] = zip(ids, contents, shown, strict=True)
    if not _is_sorted(ids):
        entries = sorted(entries, key=lambda entry: entry[0])
    for sample_id, content, label in entries:
        digest.update(f"{sample_id}\0{content}\0{label}\n".encode())
    return digest.hexdigest()


def unlabeled_note(where: str) -> str:
    """Return the note on a dataset in which nothing could be a label, so that nobody had to ask for ``--target none``."""
    return (
        f"{where} has no labels: its images are taken without (as with --target {UNLABELED}); `featcache label` attaches labels "
        "to a cache later"
    )


def no_labels(num_samples: int) -> Labels:
    """Return zeros ``[N]``, which stand for the labels of samples that have none and which no cache holds."""
    return np.zeros(num_samples, np.int64)


def class_labels(values: Sequence[Any]) -> tuple[Labels, tuple[str, ...]]:
    """Return the labels ``[N]`` and class names of values of any kind: sorted, numbers as numbers."""
    distinct = sorted(set(values), key=lambda value: (_number(value), str(value)))
    index = {value: label for label, value in enumerate(distinct)}
    return np.array([index[value] for value in values], np.int64), tuple(str(value) for value in distinct)


def indexed_targets(
    labels: Labels, names: Sequence[str] | None = None, where: str = "the dataset"
) -> Targets:
    """Return the names of all class indices; an index beyond the list of names is named by its number.

    Raises:
        DatasetError: the largest index is no plausible class, such as an id or a time in place of a label.
    """
    count = int(labels.max(initial=-1)) + 1
    known = tuple(names or ())
    if count > max(MAX_CLASSES, len(known)):
        raise DatasetError(
            f"{where}: label {count - 1} would make {count:,} classes, at most {MAX_CLASSES:,} are possible; is it the index "
            "of a class? Number the classes from 0, or give --target regression"
        )
    return Targets(SINGLE_LABEL, (*known, *(str(label) for label in range(len(known), count))))


def group_column(listing: Listing, column: str, where: str) -> list[str]:
    """Return the values of a column, as text.

    Raises:
        UnknownNameError: there is no such column.
        RequestError: there is none at all.
    """
    if column not in listing.columns:
        if not listing.columns:
            raise RequestError(f"{where} has no columns to group by; leave --group-by out")
        raise UnknownNameError("column", column, listing.columns)
    # JSON may hold a lone surrogate, which can be neither hashed nor printed.
    return [encodable(str(value)) for value in listing.columns[column]]


def refuse_repeated(ids: Sequence[str], where: str) -> None:
    """Refuse ids that are not unique.

    Raises:
        DatasetError: some are not; the first ten are named.
    """
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    repeated = list(dict.fromkeys(sample_id for sample_id in ids if sample_id in seen or seen.add(sample_id)))  # type: ignore[func-returns-value]
    raise DatasetError(f"{where}: {len(repeated)} ids appear more than once: {', '.join(repeated[:10])}")


def _is_sorted(ids: Iterable[str]) -> bool:
    return all(a <= b for a, b in pairwise(ids))


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return float("inf")
    return number if np.isfinite(number) else float("inf")  # NaN is neither before nor behind anything
