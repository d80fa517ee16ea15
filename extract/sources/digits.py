"""scikit-learn's digits: 1,797 real scans of handwriting, 8 x 8 pixels, always there."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featcache.extraction.sources.base import Citation, Source
from featcache.extraction.sources.collection import NO_TARGETS, Collection, Listing
from featcache.extraction.sources.dataset import SplitDataset
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.pixels import RGB_CHANNELS
from featcache.extraction.sources.samples import Samples, Texts
from featcache.store.errors import DatasetError, RequestError
from featcache.store.targets import SINGLE_LABEL, UNLABELED, Targets

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

# SHA-256 over the uint8 pixels and int64 labels of the set as published; it is fixed here so that the identity is
# known without importing scikit-learn, and checked when the images are read. The train part is as large for every seed.
NUM_TRAIN = 1347
NUM_TRAIN_UNLABELED = 1348
"""Without labels the split is not by class."""
DIGEST = "65e5b4619795efb40c1082f4c350c049e4ad552200d369b6ae99e21eef5e72c5"
TARGETS = Targets(SINGLE_LABEL, tuple("0123456789"))


class Digits(Source):
    """The digits dataset, split 75/25 by class; ids are ``digit-0000`` to ``digit-1796``, in the published order.

    Raises:
        RequestError: an option for which it has nothing.
    """

    name = "digits"
    targets: Targets = TARGETS
    may_be_turned = False
    citation = Citation(
        "CC BY 4.0",
        "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits. UCI Machine Learning Repository, 1998.",
        "https://archive.ics.uci.edu/dataset/80",
    )

    def __init__(self, options: DatasetOptions | None = None) -> None:
        self._options = options or DatasetOptions()
        if self._options.target == UNLABELED:
            self.targets = NO_TARGETS
        else:
            self._options.require_target(SINGLE_LABEL, self.name)
        for option, value in (
            ("group-by", self._options.group_by),
            ("test-split", self._options.test_splits),
            ("resplit", self._options.resplit),
        ):
            if value:
                raise RequestError(f"digits has neither columns nor splits of its own; leave --{option} out")
        if self._options.channels != RGB_CHANNELS:
            raise RequestError("digits has grey images, which are read as RGB; leave --channels out")

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digest of pixels and labels, and the split."""
        seed, limit = self._options.split_seed, self._options.limit
        # A limit that cuts nothing must not change the identity.
        num_train = NUM_TRAIN if self.targets.labeled else NUM_TRAIN_UNLABELED
        limit = None if limit is not None and limit >= num_train else limit
        unlabeled = {} if self.targets.labeled else {"targets": UNLABELED}
        return {"kind": "digits", "digest": DIGEST, "split_seed": seed, "limit": limit, **unlabeled}

    @property
    def splits(self) -> Mapping[str, Samples]:
        """Train and test."""
        return self._dataset.splits

    def image(self, split: str, row: int) -> "Image":
        """Return one scan as an 8 x 8 grayscale image."""
        return self._dataset.image(split, row)

    @cached_property
    def _dataset(self) -> SplitDataset:
        return SplitDataset(_Scans(), self._options)


class _Scans(Collection):
    source_type, name, may_be_turned = "digits", "digits", False

    def __init__(self) -> None:
        self._pixels, labels = _arrays()
        ids = Texts.of(f"digit-{row:04d}" for row in range(len(labels)))
        self.listing = Listing(ids, labels, TARGETS, DIGEST)

    def image(self, row: int) -> "Image":
        from PIL import Image

        return Image.fromarray(self._pixels[row])


def _arrays() -> "tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]":
    """Return the pixels ``[1797, 8, 8]`` scaled from 0..16 to 0..255, and labels ``[1797]``."""
    import numpy as np
    from sklearn.datasets import load_digits  # a second to import

    data = load_digits()
    pixels = data.images.astype(np.uint8)
    labels = data.target.astype("<i8")
    if hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest() != DIGEST:
        raise DatasetError("scikit-learn's digits differ from the published set; reinstall scikit-learn")
    return (pixels.astype(np.float64) * (255 / 16)).round().astype(np.uint8), labels
