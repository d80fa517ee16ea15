"""A request to recompute rows of a cache. No torch."""

from pathlib import Path

from attrs import Attribute, field, fields, frozen

from featcache.extraction.requests.request import ExtractRequest
from featcache.store.errors import RequestError
from featcache.store.parameters import DEVICE, as_optional_path, parameter
from featcache.store.requests import AUTO

_EXTRACTION = fields(ExtractRequest)


LOSS_SAMPLES = 64
"""Rows of a measurement of the loss, where their number is not given."""


def _check_samples(request: object, attribute: "Attribute[int]", samples: int) -> None:
    if samples < 1:
        raise RequestError(f"--recompute must be at least 1, got {samples}")


def _check_dataset(request: object, attribute: "Attribute[str]", dataset: str) -> None:
    if not dataset:
        raise RequestError(
            "--dtype-loss and --recompute need the images; give --dataset, for example imagefolder:DIR"
        )


@frozen(kw_only=True)
class RecomputeRequest:
    """Which rows to recompute, and with what.

    Raises:
        RequestError: no dataset is named, or the number of rows is below 1.
    """

    samples: int = field(
        default=LOSS_SAMPLES,
        validator=_check_samples,
        metadata=parameter(
            "Run K rows through the backbone again; all valid ones if there are fewer.",
            "--recompute",
            metavar="K",
            default=f"{LOSS_SAMPLES} with --dtype-loss",
        ),
    )
    dtype_loss: bool = field(
        default=False,
        metadata=parameter(
            "Measure what the stored type loses, for every layer and token kind, on K rows in whole batches of the extraction.",
            "--dtype-loss",
        ),
    )
    dataset: str = field(
        default="",
        validator=_check_dataset,
        metadata=parameter(
            "Dataset that the cache was extracted from, such as imagefolder:DIR.", "--dataset"
        ),
    )
    data: Path | None = field(default=None, converter=as_optional_path, metadata=_EXTRACTION.data.metadata)
    model: str | None = field(
        default=None,
        metadata=parameter("Name of the model.", "--model", default="the one in the cache's provenance"),
    )
    weights: Path | None = field(
        default=None, converter=as_optional_path, metadata=_EXTRACTION.weights.metadata
    )
    trust_remote_code: bool = field(default=False, metadata=_EXTRACTION.trust_remote_code.metadata)
    seed: int = field(default=0, metadata=parameter("Seed that chooses the rows.", "--seed"))
    device: str = field(default=AUTO, metadata=DEVICE)
