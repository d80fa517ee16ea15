"""Options of a dataset: how it is read and split. No torch."""

from functools import cached_property
from pathlib import Path

from attrs import field, frozen

from featcache.extraction.sources.pixels import RGB_CHANNELS, PixelOptions, PixelRange
from featcache.extraction.sources.split_names import TEST, TRAIN
from featcache.store.errors import RequestError
from featcache.store.parameters import FOLDER, as_names, as_optional_path, one_of, parameter
from featcache.store.requests import AUTO
from featcache.store.seeds import check_seed
from featcache.store.targets import TARGET_KINDS, UNLABELED

MAX_CHANNELS = 1024
"""Largest number of channels; hyperspectral cameras have a few hundred."""


# Without slots, since a class cannot inherit from two that have them.
@frozen(kw_only=True, slots=False)
class DatasetOptions:
    """How a dataset is read and split.

    Raises:
        UnknownNameError: there is no such target type.
        RequestError: a number is out of range, or options do not go together.
    """

    data: Path | None = field(
        default=None,
        converter=as_optional_path,
        metadata=parameter(
            "Folder of a local copy of the dataset, laid out as on the Hub.",
            "--data",
            form=FOLDER,
            metavar="DIR",
        ),
    )
    revision: str | None = field(
        default=None,
        metadata=parameter(
            "Commit, branch or tag of the dataset on the Hub, or the one that a local copy is of.",
            "--revision",
            default="main",
        ),
    )
    target: str = field(
        default=AUTO,
        validator=one_of("kind of target", (AUTO, *TARGET_KINDS)),
        metadata=parameter(
            f"Target type: {', '.join(TARGET_KINDS)}, or auto, which tells it from the labels. none reads no labels.",
            "--target",
        ),
    )
    limit: int | None = field(
        default=None,
        metadata=parameter(
            "At most this many samples of each split, stratified by class, for a trial.", "--limit"
        ),
    )
    split_seed: int = field(
        default=0,
        metadata=parameter("Seed of the 75/25 split made for datasets without splits.", "--split-seed"),
    )
    test_splits: tuple[str, ...] = field(
        default=(),
        converter=as_names,
        metadata=parameter(
            "The dataset's own splits to test on; where none is called test, the first goes by that name.",
            "--test-split",
            several=True,
            metavar="NAMES",
            default="test",
        ),
    )
    train_split: str | None = field(
        default=None,
        metadata=parameter(
            "The dataset's own split to train on, where it is not called train in some spelling.",
            "--train-split",
            metavar="NAME",
        ),
    )
    group_by: str | None = field(
        default=None,
        metadata=parameter(
            "Column of groups, such as patients; samples of one group are in train or in test, never in both.",
            "--group-by",
            metavar="COLUMN",
        ),
    )
    resplit: bool = field(
        default=False,
        metadata=parameter("Put the dataset's own splits together and split 75/25 anew.", "--resplit"),
    )
    pixel_range: str = field(
        default=AUTO,
        metadata=parameter(
            "Values of black and white in images of more than 8 bits: a number of bits such as 12, or LOW..HIGH such as "
            "0..1. auto takes all 16 bits of 16-bit images and refuses other types.",
            "--pixel-range",
            metavar="RANGE",
        ),
    )
    channels: int = field(
        default=RGB_CHANNELS,
        metadata=parameter(
            "Channels of an image in arrays of pixels, such as 13 of a multispectral camera, for a local checkpoint of timm that takes as "
            "many; --mean and --std then have a value for each.",
            "--channels",
            metavar="C",
        ),
    )
    max_pixels: int | None = field(
        default=None,
        metadata=parameter(
            "Size limit of a decoded image in pixels.", "--max-pixels", metavar="N", default="178956970"
        ),
    )

    def __attrs_post_init__(self) -> None:
        _ = self.pixels  # checks the range
        if self.max_pixels is not None and self.max_pixels < 1:
            raise RequestError(f"--max-pixels must be at least 1, got {self.max_pixels}")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise RequestError(f"--channels must be from 1 to {MAX_CHANNELS}, got {self.channels}")
        check_seed(self.split_seed, "the seed of the split (--split-seed)")
        trained = self.train_split or TRAIN
        if trained in self.test_splits:
            raise RequestError(f"--test-split {trained}: what is trained on cannot be tested on")

    @property
    def own_splits(self) -> tuple[str, ...]:
        """Names of the dataset's own splits that are read; `choose_splits` matches them with its spelling."""
        return (TRAIN, *(self.test_splits or (TEST,)))

    @cached_property
    def pixels(self) -> PixelOptions:
        """Options for reading decoded images."""
        return PixelOptions(PixelRange.parse(self.pixel_range))

    def require_target(self, target_type: str, where: str) -> None:
        """Refuse another target type than the one asked for.

        Raises:
            RequestError: it is another.
        """
        if target_type == UNLABELED and self.target not in (AUTO, UNLABELED):
            raise RequestError(
                f"{where} has no labels, so they cannot be {self.target}; leave --target out, or attach labels to the cache later "
                "with `featcache label`"
            )
        if self.target not in (AUTO, target_type):
            raise RequestError(f"{where} has {target_type} targets, not {self.target}; leave --target out")
