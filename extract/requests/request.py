"""What the user asks of an extraction, and its literal form that a cache remembers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import Attribute, field, frozen

from featcache.extraction.models.names import TRANSFORMERS, ModelName
from featcache.extraction.requests.feature_selection import FeatureSelection
from featcache.extraction.requests.preprocessing import PreprocessingOptions
from featcache.extraction.requests.weights_state import weights_sha256, weights_state
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.files import JsonObject
from featcache.store.manifest import MAX_BATCH_SIZE
from featcache.store.parameters import DEVICE, PATH, as_optional_path, one_of, parameter
from featcache.store.quantization import INT8
from featcache.store.requests import AUTO
from featcache.store.spec import PRECISIONS, RESIZES, STORED_DTYPES

WEIGHTS_RULE = "averaged weights first"
STOP, SKIP = "stop", "skip"
EXIF = "exif"
"""Field of a literal request that says whether images are turned upright."""


def _check_resize(request: object, attribute: "Attribute[Any]", resize: str) -> None:
    versions = (AUTO, *RESIZES)
    if resize not in versions:
        hint = "(--resize-size 256 is the size, --interpolation bicubic the filter)"
        raise UnknownNameError("version of resizing", resize, versions, hint)


@frozen(kw_only=True, slots=False)
class ExtractRequest(FeatureSelection, DatasetOptions, PreprocessingOptions):
    """A request, before anything is loaded: model, dataset and how it is split, and which features to cache.

    Raises:
        UnknownNameError: dtype, precision or version of resizing does not exist.
        RequestError: the weights file does not exist, or a number is out of range.
    """

    model: str = field(
        kw_only=False,
        metadata=parameter(
            "Alias such as vit-l-14 (`featcache models` lists them), or timm:NAME, open_clip:ARCHITECTURE/TAG, "
            "transformers:OWNER/NAME[@REVISION] or transformers:./FOLDER.",
            "--model",
        ),
    )
    dataset: str = field(
        kw_only=False,
        metadata=parameter(
            "Alias such as flowers (`featcache datasets` lists them), or KIND:PLACE such as imagefolder:DIR.",
            "--dataset",
        ),
    )
    weights: Path | None = field(
        default=None,
        converter=as_optional_path,
        metadata=parameter(
            "Local weights (safetensors or a torch state dict) instead of the hub's; for transformers: also a folder.",
            "--weights",
            form=PATH,
        ),
    )
    weights_key: str | None = field(
        default=None,
        metadata=parameter(
            "Set of weights to take from a file that holds several, such as model_ema or teacher.",
            "--weights-key",
            metavar="NAME",
            default="as the library",
        ),
    )
    trust_remote_code: bool = field(
        default=False,
        metadata=parameter(
            "Run the Python code of a repository of transformers that needs it; it runs with your rights.",
            "--trust-remote-code",
        ),
    )
    dtype: str = field(
        default="float16",
        validator=one_of("dtype", STORED_DTYPES),
        metadata=parameter(f"Stored type of the features: {', '.join(STORED_DTYPES)}.", "--dtype"),
    )
    precision: str = field(
        default=AUTO,
        validator=one_of("precision", (AUTO, *PRECISIONS)),
        metadata=parameter(
            "Precision of the forward pass: fp32, mixed (autocast), bf16 (bfloat16 weights, half the memory, less exact), or auto, "
            "which is mixed where the device is fast at it.",
            "--precision",
        ),
    )
    resize: str = field(
        default=AUTO,
        validator=_check_resize,
        metadata=parameter(
            "Version of the resize's arithmetic, at the same filter and size: pillow, uint8-antialias (on 8-bit pixels, five times as "
            "fast), or auto, which is pillow on a CPU and uint8-antialias elsewhere. Under auto any cache of the same images is an answer.",
            "--resize",
        ),
    )
    exif: bool | None = field(
        default=None,
        metadata=parameter(
            "Whether images are turned upright by their EXIF orientation. By default, a new cache turns them, and a complete "
            "cache of images as stored is an answer too.",
            "--exif/--no-exif",
            default="turned in new caches",
        ),
    )
    batch_size: int | None = field(
        default=None,
        metadata=parameter(
            "Images in a forward pass.", "--batch-size", default="by device and its free memory"
        ),
    )
    workers: int | None = field(
        default=None,
        metadata=parameter("Processes that decode images.", "--workers", default="by cores"),
    )
    device: str = field(default=AUTO, metadata=DEVICE)
    compile: bool = field(
        default=False,
        metadata=parameter(
            "Compile the forward pass; it is checked against the plain one before anything is written.",
            "--compile",
        ),
    )
    on_error: str = field(
        default=STOP,
        validator=one_of("way to treat errors", (STOP, SKIP)),
        metadata=parameter(
            "Action at an image that does not decode: stop, or skip it and continue; its row then has no features.",
            "--on-error",
        ),
    )

    reuse: str = field(
        default=AUTO,
        metadata=parameter(
            "Cache of the same backbone and settings (folder, key or name) whose rows are taken over for images that it holds; "
            "auto finds such caches under the roots, none computes every row.",
            "--reuse",
            metavar="CACHE",
        ),
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.check_preprocessing(self.channels)
        of_transformers = self.model.startswith(f"{TRANSFORMERS}:")
        if self.trust_remote_code and not of_transformers:
            raise RequestError(
                f"--trust-remote-code is for transformers:OWNER/NAME; {self.model} runs no code of a repository"
            )
        if self.views and self.dtype == INT8:
            raise RequestError(
                "--views cannot be stored as int8, whose scales are fitted on the plain view; leave --views or --dtype int8 out"
            )
        folder = of_transformers and self.weights is not None and self.weights.is_dir()
        if self.weights is not None and not self.weights.is_file() and not folder:
            what = "is not a file" if self.weights.exists() else "does not exist"
            raise RequestError(f"weights file {self.weights} {what}")
        if self.weights is None and self.weights_key is not None:
            raise RequestError("--weights-key chooses from a file of your own; name it with --weights FILE")
        if folder and self.weights_key is not None:
            raise RequestError(f"--weights-key chooses from a file, and {self.weights} is a folder")
        for what, number, least in (
            ("limit", self.limit, 1),
            ("batch size", self.batch_size, 1),
            ("workers", self.workers, 0),
        ):
            if number is not None and number < least:
                raise RequestError(f"{what} must be at least {least}, got {number}")
        if self.batch_size is not None and self.batch_size > MAX_BATCH_SIZE:
            raise RequestError(f"batch size must be at most {MAX_BATCH_SIZE}, got {self.batch_size}")

    def orientations(self, may_be_turned: bool) -> tuple[bool, ...]:
        """Return whether images are turned upright in caches that meet the request; a new cache takes the first.

        Args:
            may_be_turned: whether images may carry an EXIF orientation.
        """
        if not may_be_turned:
            return (False,)
        return (True, False) if self.exif is None else (self.exif,)

    def literals(
        self, model: ModelName, dataset_identity: Mapping[str, Any], may_be_turned: bool = False
    ) -> Iterator[JsonObject]:
        """What leads to the cache's key, as the cache remembers it: nothing that needs torch, and not the contents.

        Local weights are named by size and times of change first, because hashing a large file takes seconds, and by
        their digest next, which holds for a copy too.
        """
        place = self.weights or model.folder
        for fingerprint in (None,) if place is None else (weights_state, weights_sha256):
            digest = None if place is None or fingerprint is None else fingerprint(place)
            yield {
                "model": model.explicit,
                "weights": digest,
                **self._weights_choice,
                **({"trust_remote_code": True} if self.trust_remote_code else {}),
                **self.preprocessing_literal(model),
                "dataset": dict(dataset_identity),
                "dtype": self.dtype,
                "precision": self.precision,
                # Without the field, as every cache made before there was a choice, any version is an answer.
                **({} if self.resize == AUTO else {"resize": self.resize}),
                # Without the field, whatever images of a cache are turned by is an answer.
                **({} if self.exif is None or not may_be_turned else {EXIF: self.exif}),
            }

    @property
    def _weights_choice(self) -> JsonObject:
        """The set of weights taken; for PyTorch files also the rule that chose it, since an earlier version had another rule."""
        if self.weights_key is not None:
            return {"weights_key": self.weights_key}
        if self.weights is None or self.weights.suffix == ".safetensors" or self.weights.is_dir():
            return {}
        return {"weights_rule": WEIGHTS_RULE}
