"""Splits of an extraction made from a collection: its own splits or a reproducible one, whole or a stratified part."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.base import Citation, Rows, Source
from featcache.extraction.sources.collection import Collection, group_column
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.decode import pixel_limit, stored_orientation
from featcache.extraction.sources.file_states import FileStates, row_fingerprints
from featcache.extraction.sources.pixels import RGB_CHANNELS, PixelOptions
from featcache.extraction.sources.samples import Samples
from featcache.extraction.sources.split_names import TEST, TRAIN, find_split
from featcache.extraction.sources.splits import (
    order_keys,
    split_off_test,
    split_off_test_groups,
    strata_of,
    stratified_part,
)
from featcache.store.errors import DatasetError, RequestError, UnknownNameError
from featcache.store.inventory import MAX_SAMPLE_ID_BYTES, PROJECTION
from featcache.store.requests import AUTO
from featcache.store.targets import (
    REGRESSION,
    SINGLE_LABEL,
    UNLABELED,
    Targets,
    names_problem,
    too_many_names,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_SAFE = re.compile(r"[A-Za-z0-9_-]{1,64}")


class SplitDataset(Source):
    """A collection with its splits.

    Args:
        collection: what is there.
        options: how to split it.

    Raises:
        RequestError: a limit smaller than the number of classes, or a split or column that is not there.
        DatasetError: it cannot be split, or train and test do not fit together.
    """

    def __init__(self, collection: Collection, options: DatasetOptions | None = None) -> None:
        self._collection = collection
        self._options = options or DatasetOptions()
        if self._options.target == UNLABELED and collection.listing.targets.labeled:
            collection.listing.drop_labels(collection.name)
        self._notes = list(collection.listing.notes)
        self._own = not self._options.resplit and len(collection.listing.parts) > 0
        if self._options.resplit and collection.listing.unread:
            self._notes.append(
                f"not put together with the others: split {', '.join(collection.listing.unread)}"
            )
        if self._options.channels != RGB_CHANNELS and not collection.takes_channels:
            raise RequestError(
                f"--channels is for images in arrays of pixels (npz:, hdf5:, idx:, sequences in Python), which {collection.name} "
                "does not hold; leave it out"
            )
        if not len(collection.listing.ids):
            raise DatasetError(f"{collection.name} holds no samples")
        self._options.require_target(self.targets.type, self.name)
        if not collection.listing.parts and (self._options.test_splits or self._options.train_split):
            raise RequestError(
                f"{self.name} has no splits of its own; leave --train-split and --test-split out, and it is split 75/25"
            )
        rows = self._own_splits() if self._own else self._new_splits()
        self._check_storable(rows)
        self._check_agreement(rows)
        self._report_empty_classes(rows)
        self._limit = self._options.limit
        if self._limit is not None and all(len(part) <= self._limit for part in rows.values()):
            self._limit = None  # it cuts nothing, so it must not change the identity
        if self._limit is not None:
            rows = {name: self._part(part, self._limit) for name, part in rows.items()}
        listing = collection.listing
        self._splits = {name: Samples(listing.ids, listing.labels, part) for name, part in rows.items()}

    @property
    def name(self) -> str:
        """Name for people and folders."""
        return self._collection.name

    @property
    def targets(self) -> Targets:
        """Kind, names and units of the targets."""
        return self._collection.listing.targets

    @property
    def splits(self) -> Mapping[str, Samples]:
        """The samples of every split."""
        return self._splits

    @property
    def notes(self) -> Sequence[str]:
        """Notes for people who use the dataset."""
        return self._notes

    @property
    def pixels(self) -> PixelOptions:
        """Options for reading decoded images."""
        return self._options.pixels

    @property
    def channels(self) -> int:
        """Number of channels that images are given with."""
        return self._options.channels

    @property
    def may_be_turned(self) -> bool:
        """Whether images may carry an EXIF orientation."""
        return self._collection.may_be_turned

    @property
    def passed_over(self) -> Mapping[str, int]:
        """Number of files or entries that are not read."""
        return self._collection.listing.passed_over

    @property
    def citation(self) -> Citation:
        """License and citation."""
        return self._collection.citation

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Digest of the content, and how it is split."""
        listing, options = self._collection.listing, self._options
        # What was not asked for is left out, so that more options do not change the key of what was there before.
        extra = {
            **({} if listing.targets.type == SINGLE_LABEL else {"targets": listing.targets.type}),
            **({"group_by": options.group_by} if options.group_by and not self._own else {}),
            **({"test_splits": list(self._test_splits)} if self._test_splits and self._own else {}),
            **({"train_split": options.train_split} if options.train_split not in (None, TRAIN) else {}),
            **({"resplit": True} if options.resplit and listing.parts else {}),
            **({"channels": options.channels} if options.channels != RGB_CHANNELS else {}),
            **({"pixel_range": options.pixel_range} if options.pixel_range != AUTO else {}),
        }
        return {
            "kind": self._collection.source_type,
            "digest": listing.digest,
            "split_seed": None if self._own else options.split_seed,
            # The part that a limit takes is chosen by the seed too.
            "limit": None if self._limit is None else [self._limit, options.split_seed],
            **extra,
            **listing.facts,
        }

    def image(self, split: str, row: int) -> "Image":
        """Decode one image; see `Source.image`."""
        with pixel_limit(self._options.max_pixels):
            return self._collection.image(int(self._splits[split].rows[row]))

    def count_turned(self, limit: int) -> int | None:
        """Count the images with an EXIF orientation, where each image has a file of its own."""
        rows = np.concatenate([samples.rows for samples in self._splits.values()])
        if not self._collection.one_file_a_row or len(rows) > limit:
            return None
        try:
            return sum(stored_orientation(path) > 1 for path in self._collection.files(rows.tolist()))
        except DatasetError:
            return None

    def file_states(self) -> FileStates | None:
        """Return the size and times of the files that images are read from."""
        rows = np.concatenate([samples.rows for samples in self._splits.values()])
        states = FileStates.of(self._collection.files(rows.tolist()), self._collection.one_file_a_row)
        return states if len(states.states) else None

    def row_fingerprints(self) -> Mapping[str, npt.NDArray[np.uint8]]:
        """See `Source.row_fingerprints`."""
        found = {}
        for name, samples in self._splits.items():
            rows = samples.rows.tolist()
            places = self._collection.row_places(rows)
            if places is not None:
                ids = (self._collection.listing.ids[row] for row in rows)
                found[name] = row_fingerprints(ids, places)
        return found

    def prepare(self, split: str, rows: Sequence[int]) -> None:
        """See `Source.prepare`."""
        self._collection.prepare([int(row) for row in self._splits[split].rows[list(rows)]])

    @cached_property
    def _test_splits(self) -> tuple[str, ...]:
        """The splits to test on, in the dataset's spelling; empty stands for its ``test``."""
        listing = self._collection.listing
        return tuple(
            find_split(name, [*listing.parts, *listing.unread]) for name in self._options.test_splits
        )

    def _own_splits(self) -> dict[str, Rows]:
        """Return the dataset's own splits; if no test split is called ``test``, the first one takes that name."""
        listing, test_splits = self._collection.listing, self._test_splits
        everything = (*listing.parts, *listing.unread)
        for name in test_splits:
            if name not in listing.parts:
                raise UnknownNameError("split", name, everything)
        if list(everything) == [TRAIN]:
            self._own = False
            return self._new_splits()
        if not test_splits and TEST not in listing.parts:
            raise DatasetError(
                f"{self.name} has no split test; it has {', '.join(everything)}: name one with --test-split, or split "
                "it anew with --resplit"
            )
        if TRAIN not in listing.parts:
            self._notes.append(
                f"{self.name} has no train split: {', '.join(listing.parts)} alone (--resplit splits anew)"
            )
        # In the order asked for; what else is there is not read.
        ordered = (TRAIN, *(test_splits or (TEST,)))
        rows = {name: listing.parts[name] for name in ordered if name in listing.parts}
        if test_splits and TEST not in rows:
            rows = {TEST if name == test_splits[0] else name: part for name, part in rows.items()}
            self._notes.append(f"split {test_splits[0]} of {self.name} goes by the name test in the cache")
        if listing.unread and not test_splits:
            self._notes.append(f"not read: split {', '.join(listing.unread)} (--test-split)")
        if self._options.group_by:
            self._refuse_shared_groups(rows, self._options.group_by)
        return rows

    def _new_splits(self) -> dict[str, Rows]:
        listing, options = self._collection.listing, self._options
        rows = (
            np.sort(np.concatenate(list(listing.parts.values())))
            if listing.parts
            else np.arange(len(listing.ids))
        )
        labels = listing.labels[rows]
        strata = strata_of(labels, listing.targets.type)
        if options.group_by:
            names = group_column(listing, options.group_by, self.name)
            distinct, groups = np.unique([names[row] for row in rows], return_inverse=True)
            test = split_off_test_groups(groups, distinct.tolist(), strata, options.split_seed)
            if not test.any():
                raise DatasetError(
                    f"{self.name}: no group of {options.group_by} can go to test and leave its classes in train; "
                    f"there are {len(distinct)} groups"
                )
        else:
            self._refuse_single_images(strata)
            ids = (listing.ids[int(row)] for row in rows)
            test = split_off_test(order_keys(ids, options.split_seed), strata)
        if not listing.targets.labeled and len(rows) == 1:
            self._notes.append(f"{self.name} has a single image, which makes split train alone")
            return {TRAIN: rows}
        return {TRAIN: rows[~test], TEST: rows[test]}

    def _refuse_single_images(self, strata: Rows) -> None:
        if self.targets.type != SINGLE_LABEL:
            return
        single = np.flatnonzero(np.bincount(strata) == 1)
        if single.size:
            name = self.class_names[int(single[0])]
            hint = "add images, remove the class, or provide train/ and test/ folders"
            if _is_fraction(name):
                hint = f"for real values give --target {REGRESSION}, or {hint}"
            raise DatasetError(
                f"class {name!r} has a single image, so it cannot be in both train and test; {hint}"
            )

    def _refuse_shared_groups(self, rows: Mapping[str, Rows], column: str) -> None:
        names = group_column(self._collection.listing, column, self.name)
        train = {names[row] for row in rows.get(TRAIN, ())}
        for split, part in rows.items():
            shared = [] if split == TRAIN else sorted(train & {names[row] for row in part})
            if shared:
                raise DatasetError(
                    f"{self.name}: {len(shared)} groups of {column} are in both train and {split}: "
                    f"{', '.join(shared[:10])}; --resplit splits anew by {column}"
                )

    def _part(self, rows: Rows, limit: int) -> Rows:
        listing = self._collection.listing
        keys = order_keys((listing.ids[int(row)] for row in rows), self._options.split_seed)
        strata = strata_of(listing.labels[rows], listing.targets.type)
        return rows[stratified_part(keys, strata, limit, each=listing.targets.type == SINGLE_LABEL)]

    def _check_storable(self, rows: Mapping[str, Rows]) -> None:
        """Refuse now what no cache could hold, not after the backbone has run."""
        listing, targets = self._collection.listing, self.targets
        longest = int(listing.ids.lengths.max())
        mismatch = targets.mismatch(listing.labels, np.ones(len(listing.ids), np.bool_))
        if mismatch:
            raise DatasetError(f"{self.name}: {mismatch}")
        for split in rows:
            if not _SAFE.fullmatch(split) or split == PROJECTION:
                raise DatasetError(
                    f"{self.name}: split {split!r} cannot have this name in a cache; rename it (letters, digits, '_', '-')"
                )
        problem = names_problem(targets.names, targets.units) or too_many_names(targets.names)
        if problem:
            raise DatasetError(f"{self.name}: {problem}")
        if longest > MAX_SAMPLE_ID_BYTES:
            raise DatasetError(
                f"{self.name}: an id has {longest} bytes, at most {MAX_SAMPLE_ID_BYTES} are possible"
            )

    def _report_empty_classes(self, rows: Mapping[str, Rows]) -> None:
        """Report classes without a sample, such as class 0 where labels count from 1."""
        if self.targets.type == REGRESSION or not self.targets.labeled:
            return
        labels = self._collection.listing.labels[np.concatenate(list(rows.values()))]
        counts = self.targets.counts(labels)
        empty = np.flatnonzero(counts == 0)
        if not empty.size:
            return
        shown = ", ".join(self.targets.names[int(label)] for label in empty[:5])
        from_one = (
            empty.tolist() == [0] and self.targets.type == SINGLE_LABEL and self.targets.names[0] == "0"
        )
        self._notes.append(
            f"{self.name}: {len(empty)} of {len(counts)} classes have no sample ({shown}{', ...' if len(empty) > 5 else ''})"
            + ("; labels count from 1" if from_one else "")
        )

    def _check_agreement(self, rows: Mapping[str, Rows]) -> None:
        """Say what of test a head that is trained on train cannot know."""
        labels, targets = self._collection.listing.labels, self.targets
        for name, part in rows.items():
            if not len(part):
                raise DatasetError(f"{self.name}: split {name} is empty")
            if name == TRAIN or TRAIN not in rows or not targets.labeled:
                continue
            train, test = labels[rows[TRAIN]], labels[part]
            if targets.type == REGRESSION:
                outside = ((test < train.min(0)) | (test > train.max(0))).any(1).sum()
                difference = (
                    f"{outside} of {len(part)} targets lie outside of the range of train" if outside else ""
                )
            else:
                unknown = np.flatnonzero((targets.counts(train) == 0) & (targets.counts(test) > 0))
                shown = ", ".join(targets.names[int(label)] for label in unknown[:10])
                difference = f"classes that train lacks: {shown}" if unknown.size else ""
            if difference:
                self._notes.append(f"split {name} of {self.name}: {difference}")


def _is_fraction(name: str) -> bool:
    """Return whether the name of a class is a number but no integer, such as a measurement."""
    try:
        return not float(name).is_integer()
    except (ValueError, OverflowError):
        return False
