"""What the user asks of an extraction, and its literal form that a cache remembers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from featcache.extraction.models.names import ModelName
from featcache.extraction.requests.feature_selection import Contents
from featcache.extraction.sources.dataset import DatasetOptions
from featcache.extraction.sources.pixels import AS_STORED
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.files import JsonObject, sha256_file
from featcache.store.manifest import MAX_BATCH_SIZE
from featcache.store.requests import AUTO
from featcache.store.seeds import check_seed
from featcache.store.spec import PRECISIONS, STORED_DTYPES

WEIGHTS_RULE = "averaged weights first"
STOP, SKIP = "stop", "skip"


@dataclass(frozen=True)
class ExtractRequest:
    """A request as given, before anything is loaded.

    Raises:
        UnknownNameError: dtype or precision does not exist.
        RequestError: the weights file does not exist, or a number is out of range.
    """

    model: str
    """Alias or explicit name."""
    dataset: str
    """An alias such as ``flowers``, or ``KIND:PLACE`` such as ``imagefolder:DIR``."""
    weights: Path | None = None
    """Local weights instead of the hub's."""
    weights_key: str | None = None
    """Name of the set of weights to take from a file that holds several, such as ``model_ema``."""
    dtype: str = "float16"
    """Stored type of the features."""
    precision: str = AUTO
    """``fp32``, ``mixed`` (autocast), or ``auto``: mixed where the device is fast at it."""
    contents: Contents = field(default_factory=Contents)
    """What of the features to cache."""
    limit: int | None = None
    """At most this many samples of each split, stratified by class."""
    split_seed: int = 0
    """Seed of the 75/25 split of a dataset that has none of its own."""
    test_splits: tuple[str, ...] = ()
    """The dataset's own splits to test on; its ``test`` if empty."""
    train_split: str | None = None
    """The dataset's own split to train on; its ``train`` if None."""
    group_by: str | None = None
    """Column whose groups are in train or in test, never in both."""
    resplit: bool = False
    """Put the dataset's own splits together and split anew."""
    target: str = AUTO
    """Kind of the targets: ``single-label``, ``multi-label``, ``regression``, or what they look like."""
    data: Path | None = None
    """Folder of a local copy of the dataset."""
    revision: str | None = None
    """Commit, branch or tag of the dataset on the Hub; what a local copy is of."""
    pixel_range: str = AUTO
    """Values of black and white in images of more than 8 bits: ``auto``, a number of bits such as ``12``, or ``LOW..HIGH``."""
    exif_orientation: str = AS_STORED
    """``ignore`` takes pixels as stored; ``apply`` rotates images by their EXIF orientation."""
    max_pixels: int | None = None
    """Size limit of a decoded image in pixels; 178,956,970 if not given."""
    batch_size: int | None = None
    """Samples in a forward pass; chosen by device if not given. Provenance, not part of the key."""
    workers: int | None = None
    """Processes that decode images; chosen by the number of cores if not given."""
    device: str = AUTO
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    compile: bool = False
    """Compile the forward pass; the features stay the same but for rounding."""
    on_error: str = STOP
    """What to do about an image that does not decode: ``stop``, or ``skip`` it."""

    def __post_init__(self) -> None:
        for what, value, valid in (
            ("dtype", self.dtype, STORED_DTYPES),
            ("precision", self.precision, (AUTO, *PRECISIONS)),
            ("way to treat errors", self.on_error, (STOP, SKIP)),
        ):
            if value not in valid:
                raise UnknownNameError(what, value, valid)
        check_seed(self.split_seed, "the seed of the split (--split-seed)")
        _ = self.dataset_options  # which checks them
        if self.weights is not None and not self.weights.is_file():
            what = "is not a file" if self.weights.exists() else "does not exist"
            raise RequestError(f"weights file {self.weights} {what}")
        if self.weights is None and self.weights_key is not None:
            raise RequestError("--weights-key chooses from a file of your own; name it with --weights FILE")
        for what, number, least in (
            ("limit", self.limit, 1),
            ("batch size", self.batch_size, 1),
            ("workers", self.workers, 0),
        ):
            if number is not None and number < least:
                raise RequestError(f"{what} must be at least {least}, got {number}")
        if self.batch_size is not None and self.batch_size > MAX_BATCH_SIZE:
            raise RequestError(f"batch size must be at most {MAX_BATCH_SIZE}, got {self.batch_size}")

    @property
    def dataset_options(self) -> DatasetOptions:
        """How the dataset is read and split."""
        names = (field.name for field in fields(DatasetOptions))
        return DatasetOptions(**{name: getattr(self, name) for name in names})

    def literals(self, model: ModelName, dataset_identity: Mapping[str, Any]) -> Iterator[JsonObject]:
        """What leads to the cache's key, as the cache remembers it: nothing that needs torch, and not the contents.

        Local weights are named by size and times of change first, because hashing a large file takes seconds, and by
        their digest next, which holds for a copy too.
        """
        names = [None] if self.weights is None else [_file_state(self.weights), None]
        for name in names:
            digest = sha256_file(self.weights) if self.weights is not None and name is None else name
            yield {
                "model": model.explicit,
                "weights": digest,
                **self._weights_choice,
                "dataset": dict(dataset_identity),
                "dtype": self.dtype,
                "precision": self.precision,
            }

    @property
    def _weights_choice(self) -> JsonObject:
        """The set of weights taken; for PyTorch files also the rule that chose it, since an earlier version had another rule."""
        if self.weights_key is not None:
            return {"weights_key": self.weights_key}
        if self.weights is None or self.weights.suffix == ".safetensors":
            return {}
        return {"weights_rule": WEIGHTS_RULE}


def _file_state(path: Path) -> str:
    state = path.stat()
    # Copying tools can restore mtime, but nothing can set ctime back.
    return f"{state.st_size} bytes, changed at {state.st_mtime_ns} ns, status at {state.st_ctime_ns} ns"
