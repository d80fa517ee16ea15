"""scikit-learn's digits: 1,797 real scans of handwriting, 8 x 8 pixels, always there."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featcache.extract.sources.base import Sample
from featcache.extract.sources.splits import split_by_class, stratified_part
from featcache.store.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

# SHA-256 over the uint8 pixels and int64 labels of the set as published; it is fixed here so that the identity is
# known without importing scikit-learn, and checked when the images are read. The train part is as large for every seed.
NUM_TRAIN = 1347
DIGEST = "65e5b4619795efb40c1082f4c350c049e4ad552200d369b6ae99e21eef5e72c5"


class Digits:
    """The digits dataset, split 75/25 by class."""

    name = "digits"
    class_names: Sequence[str] = tuple("0123456789")

    def __init__(self, split_seed: int = 0, limit: int | None = None) -> None:
        self._split_seed = split_seed
        # A limit that cuts nothing must not change the identity.
        self._limit = None if limit is not None and limit >= NUM_TRAIN else limit

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digest of pixels and labels, and the split."""
        return {"kind": "digits", "digest": DIGEST, "split_seed": self._split_seed, "limit": self._limit}

    @cached_property
    def splits(self) -> Mapping[str, Sequence[Sample]]:
        """Train and test; ids are ``digit-0000`` to ``digit-1796``, in the published order."""
        samples = [Sample(f"digit-{row:04d}", int(label)) for row, label in enumerate(self._arrays[1])]
        train, test = split_by_class(samples, self.class_names, self._split_seed)
        parts = {"train": train, "test": test}
        if self._limit is None:
            return parts
        return {name: stratified_part(part, self._limit, self._split_seed) for name, part in parts.items()}

    def image(self, split: str, row: int) -> "Image":
        """Return one scan as an 8 x 8 greyscale image."""
        from PIL import Image

        index = int(self.splits[split][row].id.removeprefix("digit-"))
        return Image.fromarray(self._arrays[0][index])

    @cached_property
    def _arrays(self) -> "tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]":
        """Pixels ``[1797, 8, 8]`` scaled from 0..16 to 0..255, and labels ``[1797]``."""
        import numpy as np
        from sklearn.datasets import load_digits  # a second to import

        data = load_digits()
        pixels = data.images.astype(np.uint8)
        labels = data.target.astype("<i8")
        if hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest() != DIGEST:
            raise DatasetError("scikit-learn's digits differ from the published set; reinstall scikit-learn")
        return (pixels.astype(np.float64) * (255 / 16)).round().astype(np.uint8), labels
