"""Datasets that are Python objects: any sequence of (image, target), one's own or torchvision's."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.extract.sources.arrays import array_targets, to_image
from featcache.extract.sources.base import Source
from featcache.extract.sources.collection import Collection, Listing, class_labels, refuse_repeated
from featcache.extract.sources.dataset import DatasetOptions, SplitDataset
from featcache.extract.sources.decode import decode
from featcache.extract.sources.samples import Texts
from featcache.store.errors import DatasetError, RequestError
from featcache.store.targets import SINGLE_LABEL, Targets

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLED_IMAGES = 64
"""Images whose pixels go into the identity: all of them would have to be decoded twice."""


class PythonDataset(Collection):
    """Sequences of (image, target), one for every split; see `python_dataset`."""

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Sequence[Any]],
        targets: Mapping[str, Sequence[Any]],
        ids: Mapping[str, Sequence[str]],
        names: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        target: str = "auto",
        kind: str = "python",
    ) -> None:
        self.name = name
        self.kind = kind
        self._splits = list(splits.values())
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in splits.values()])])
        known = [_given(split, part, targets) for split, part in splits.items()]
        labels, what = _labels([value for values in known for value in values], target, names, name)
        every = [one for split, part in splits.items() for one in _ids(split, part, ids)]
        refuse_repeated(every, name)
        own = {
            split: np.arange(start, stop)
            for split, start, stop in zip(splits, self._starts, self._starts[1:], strict=False)
        }
        self.listing = Listing(
            Texts.of(every), labels, what, "", {} if list(own) == [""] else own, (), columns
        )
        self.listing.digest = self._digest(what, labels)

    def image(self, row: int) -> "Image":
        """Return one image."""
        part = int(np.searchsorted(self._starts, row, "right")) - 1
        one = self.listing.ids[row]
        try:
            item = self._splits[part][row - int(self._starts[part])]
            return as_image(item[0], one)
        except DatasetError:
            raise
        except Exception as error:  # whatever a sequence of other people's may raise
            raise DatasetError(
                f"image {one} of {self.name} cannot be read ({type(error).__name__}: {error})"
            ) from None

    def _digest(self, what: Targets, labels: Any) -> str:
        digest = hashlib.sha256("\0".join((*what.names, *self.listing.ids)).encode())
        digest.update(labels.tobytes())
        rows = np.linspace(0, len(labels) - 1, min(SAMPLED_IMAGES, len(labels))).astype(int)
        for row in dict.fromkeys(rows.tolist()):
            image = self.image(row)
            digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
        return digest.hexdigest()


def python_dataset(
    splits: "Mapping[str, Sequence[Any]] | Sequence[Any]",
    *,
    name: str,
    ids: "Mapping[str, Sequence[str]] | Sequence[str] | None" = None,
    targets: "Mapping[str, Sequence[Any]] | Sequence[Any] | None" = None,
    class_names: Sequence[str] = (),
    columns: Mapping[str, Sequence[Any]] | None = None,
    options: DatasetOptions | None = None,
) -> Source:
    """Make a dataset of any sequence of (image, target), or of one for each split.

    Args:
        splits: items by split (``train`` and ``test``), or items that are to be split 75/25. An image is one of Pillow's,
            an array ``[H, W]`` or ``[H, W, 3]`` uint8, or a path; a target is an integer from 0 or a text (one class), a
            vector of 0 and 1 (several), or real values. Worker processes get a copy of the sequence, so it must be picklable.
        name: for people and folders.
        ids: of the samples, stable and unique; by default their numbers.
        targets: known up front; otherwise every item is read once to learn its target, unless the sequence has
            ``targets`` itself.
        class_names: in label order; of real values, their names.
        columns: further values of all samples, by which they can be grouped.
        options: how to split it.

    Raises:
        DatasetError: it cannot be used as a dataset.

    Example:
        >>> photos = python_dataset({"train": train, "test": test}, name="mine")            # doctest: +SKIP
        >>> extract(ExtractRequest("vit-l-14", "mine"), roots(), source=photos)             # doctest: +SKIP
    """
    parts = splits if isinstance(splits, Mapping) else {"": splits}

    def by_split(given: Any) -> Mapping[str, Sequence[Any]]:
        return {} if given is None else given if isinstance(given, Mapping) else {"": given}

    options = options or DatasetOptions()
    collection = PythonDataset(
        name, parts, by_split(targets), by_split(ids), class_names, columns or {}, options.target
    )
    unwanted = [split for split in collection.listing.parts if split not in options.own_splits]
    if unwanted and not options.test_splits:
        options = DatasetOptions(
            **{**vars(options), "test_splits": tuple(s for s in collection.listing.parts if s != "train")}
        )
    return SplitDataset(collection, options)


def as_image(value: Any, where: str) -> "Image":
    """An image of Pillow's, an array or a path, as an image.

    Raises:
        DatasetError: it is none of these, or does not decode.
    """
    from PIL.Image import Image

    if isinstance(value, Image):
        return value
    if isinstance(value, str | Path):
        return decode(value, value)
    if hasattr(value, "__array__"):
        return to_image(np.asarray(value), where)
    raise DatasetError(
        f"image {where} is {type(value).__name__}; it must be an image of Pillow's, an array or a path"
    )


def _given(split: str, part: Sequence[Any], targets: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    known = targets.get(split)
    if known is None:
        known = getattr(part, "targets", None)
    values = [part[row][1] for row in range(len(part))] if known is None else list(known)
    if len(values) != len(part):
        raise DatasetError(f"split {split or 'all'} has {len(part)} items and {len(values)} targets")
    return [value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value for value in values]


def _ids(split: str, part: Sequence[Any], ids: Mapping[str, Sequence[str]]) -> Sequence[str]:
    if split not in ids:
        return [f"{split}/{row}" if split else str(row) for row in range(len(part))]
    if len(ids[split]) != len(part):
        raise DatasetError(f"split {split or 'all'} has {len(part)} items and {len(ids[split])} ids")
    return [str(one) for one in ids[split]]


def _labels(values: Sequence[Any], target: str, names: Sequence[str], where: str) -> tuple[Any, Targets]:
    if not values:
        raise DatasetError(f"{where} holds no samples")
    if all(isinstance(value, str) for value in values):
        labels, found = class_labels(values)
        return labels, Targets(SINGLE_LABEL, found)
    try:
        table = np.array([np.asarray(value) for value in values])
    except (ValueError, TypeError):
        table = np.zeros(0, object)
    if table.dtype.kind not in "biuf":
        raise RequestError(
            f"{where}: targets must be integers, texts, or vectors of one length, got {values[0]!r}"
        )
    return array_targets([table], target, names, where)
