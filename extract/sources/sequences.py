"""Datasets that are Python objects: any sequence of (image, target), one's own or torchvision's."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve

from featcache.extraction.sources.array_images import to_channels, to_image
from featcache.extraction.sources.array_labels import (
    InferredTargets,
    array_targets,
    label_text,
    text_targets,
    unlabeled_targets,
)
from featcache.extraction.sources.base import Source
from featcache.extraction.sources.collection import Collection, Listing, refuse_repeated
from featcache.extraction.sources.dataset import SplitDataset
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.decode import decode
from featcache.extraction.sources.pixels import RGB_CHANNELS, PixelRange
from featcache.extraction.sources.samples import Texts
from featcache.extraction.sources.split_names import TEST, TRAIN, choose_splits, role_of
from featcache.store.errors import DatasetError, RequestError, UnknownNameError
from featcache.store.targets import UNLABELED, Targets

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
        options: DatasetOptions,
        source_type: str = "python",
        unread: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.source_type = source_type
        self._range = options.pixels.pixel_range
        self._splits = list(splits.values())
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in splits.values()])])
        self._channels = options.channels
        self.takes_channels = all(map(_is_array, self._splits))
        self.may_be_turned = any(len(part) and not _is_array(part) for part in self._splits)
        if options.target == UNLABELED:
            inferred = unlabeled_targets(int(self._starts[-1]))
        else:
            known = [_given(split, part, targets) for split, part in splits.items()]
            inferred = _labels([value for values in known for value in values], options.target, names, name)
        every = [sample_id for split, part in splits.items() for sample_id in _ids(split, part, ids)]
        refuse_repeated(every, name)
        for column, values in columns.items():
            if len(values) != len(every):
                raise DatasetError(
                    f"{name}: column {column} has {len(values)} values for {len(every)} samples"
                )
        own = {
            split: np.arange(start, stop)
            for split, start, stop in zip(splits, self._starts, self._starts[1:], strict=False)
        }
        self.listing = Listing(
            Texts.of(every),
            inferred.labels,
            inferred.targets,
            "",
            {} if list(own) == [""] else own,
            unread,
            columns,
            notes=inferred.notes,
        )
        self.listing.digest = self._digest(inferred.targets, inferred.labels)

    def image(self, row: int) -> "Image":
        """Return one image."""
        part = int(np.searchsorted(self._starts, row, "right")) - 1
        sample_id = self.listing.ids[row]
        try:
            item = self._splits[part][row - int(self._starts[part])]
            pair = self.listing.targets.labeled or isinstance(item, tuple | list)
            given = item[0] if pair else item
            if self._channels != RGB_CHANNELS and _is_array([(given, None)]):
                return to_channels(np.asarray(given), sample_id, self._range, self._channels)
            image = as_image(given, sample_id, self._range)
            image.load()  # Pillow opens files without reading them
            return image
        except DatasetError:
            raise
        except Exception as error:  # a custom sequence may raise anything
            raise DatasetError(
                f"image {sample_id} of {self.name} cannot be read ({type(error).__name__}: {error})"
            ) from None

    def _digest(self, targets: Targets, labels: Any) -> str:
        from featcache.extraction.sources.channel_image import ChannelImage  # Pillow

        digest = hashlib.sha256("\0".join((*targets.names, *self.listing.ids)).encode())
        digest.update(labels.tobytes())
        rows = np.linspace(0, len(labels) - 1, min(SAMPLED_IMAGES, len(labels))).astype(int)
        for row in dict.fromkeys(rows.tolist()):
            image = self.image(row)
            pixels = image.pixels.tobytes() if isinstance(image, ChannelImage) else image.tobytes()
            digest.update(f"{image.mode} {image.size}".encode() + pixels)
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
        splits: items by split (``train`` and ``test``), or items that are to be split 75/25; with the option ``target="none"``
            an item may be the image alone. An image is one of Pillow's,
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
    options = options or DatasetOptions()
    parts = (
        {str(split): part for split, part in splits.items()} if isinstance(splits, Mapping) else {"": splits}
    )
    for split, part in parts.items():
        if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
            raise RequestError(
                f"{name}: {split or 'the dataset'} is {type(part).__name__}; it must be a sequence with a length, such as a list"
            )
    spelled = [split for split in parts if split]
    options = _test_on_all_splits(spelled, options)
    chosen = choose_splits(spelled, options, name)

    def by_split(given: Any) -> Mapping[str, Sequence[Any]]:
        """The sequence given for each split, by the split's name here."""
        if given is None:
            return {}
        given = given if isinstance(given, Mapping) else {"": given}
        for split in given:
            if split not in parts:
                raise UnknownNameError("split", str(split), list(parts))
        return {called: given[split] for called, split in names.items() if split in given}

    names = chosen.names or {"": ""}
    collection = PythonDataset(
        name,
        {called: parts[split] for called, split in names.items()},
        by_split(targets),
        by_split(ids),
        class_names,
        columns or {},
        options,
        unread=chosen.unread,
    )
    return SplitDataset(collection, options)


def _test_on_all_splits(spelled: Sequence[str], options: DatasetOptions) -> DatasetOptions:
    """Return the options, with all splits but train as test splits unless the options name some: given splits are meant to be read."""
    train = options.train_split or next((split for split in spelled if role_of(split) == TRAIN), None)
    others = [split for split in spelled if split != train]
    usual = not others or [role_of(split) for split in others] == [TEST]
    if options.test_splits or train is None or usual:
        return options
    return evolve(options, test_splits=others)


def as_image(value: Any, where: str, pixel_range: PixelRange | None = None) -> "Image":
    """Return an image of Pillow's, an array or a path as an image.

    Raises:
        DatasetError: it is none of these, or does not decode.
    """
    from PIL.Image import Image

    if isinstance(value, Image):
        return value
    if isinstance(value, str | Path):
        return decode(value, value)
    if hasattr(value, "__array__"):
        return to_image(np.asarray(value), where, pixel_range)
    raise DatasetError(
        f"image {where} is {type(value).__name__}; it must be an image of Pillow's, an array or a path"
    )


def _is_array(items: Sequence[Any]) -> bool:
    """Return whether the first image of a sequence is an array, which carries no EXIF orientation."""
    from PIL.Image import Image

    with suppress(Exception):  # reading the images reports what is wrong with a custom sequence
        image = items[0][0]
        return hasattr(image, "__array__") and not isinstance(image, Image)
    return False


def _given(split: str, part: Sequence[Any], targets: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    known = targets.get(split)
    if known is None:
        known = getattr(part, "targets", None)
    values = _read_targets(split, part) if known is None else list(known)
    if len(values) != len(part):
        raise DatasetError(f"split {split or 'all'} has {len(part)} items and {len(values)} targets")
    return [value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value for value in values]


def _read_targets(split: str, part: Sequence[Any]) -> list[Any]:
    values = []
    for row in range(len(part)):
        try:
            values.append(part[row][1])
        except Exception as error:  # a custom sequence may raise anything
            raise DatasetError(
                f"item {row} of split {split or 'all'} cannot be read as (image, target) ({type(error).__name__}: {error}); items "
                f"without targets need options=DatasetOptions(target={UNLABELED!r})"
            ) from error
    return values


def _ids(split: str, part: Sequence[Any], ids: Mapping[str, Sequence[str]]) -> Sequence[str]:
    if split not in ids:
        return [f"{split}/{row}" if split else str(row) for row in range(len(part))]
    if len(ids[split]) != len(part):
        raise DatasetError(f"split {split or 'all'} has {len(part)} items and {len(ids[split])} ids")
    return [str(sample_id) for sample_id in ids[split]]


def _labels(values: Sequence[Any], target: str, names: Sequence[str], where: str) -> InferredTargets:
    if not values:
        raise DatasetError(f"{where} holds no samples")
    if all(isinstance(value, str) for value in values):
        return text_targets(
            [label_text(value, row, where) for row, value in enumerate(values)], target, names, where
        )
    try:
        table = np.array([np.asarray(value) for value in values])
    except (ValueError, TypeError, OverflowError):
        table = np.zeros(0, object)
    if table.dtype.kind not in "biuf":
        raise RequestError(
            f"{where}: targets must be integers, texts, or vectors of one length, got {values[0]!r}"
        )
    return array_targets([table], target, names, where)
