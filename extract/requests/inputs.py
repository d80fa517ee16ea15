"""Inputs of an extraction: the request with its model and dataset resolved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featcache.extraction.models.names import ModelName, resolve_model
from featcache.extraction.provenance.summary import dataset_summary
from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.base import Source
from featcache.store.errors import RequestError
from featcache.store.progress import Reporter

if TYPE_CHECKING:
    from featcache.extraction.backbones.base import Backbone


@dataclass(frozen=True)
class Inputs:
    """A request, its model and its dataset."""

    request: ExtractRequest
    model: ModelName
    source: Source
    summary: str
    """Description of the dataset in one line."""
    custom_backbone: "Backbone | None" = None
    """The backbone, if it is given and not loaded by name."""

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        """Names of model and dataset, as given and as resolved."""
        return {
            "model": [self.model.given, self.model.explicit],
            "dataset": [self.source.name, self.request.dataset],
        }


def resolve_inputs(
    request: ExtractRequest,
    reporter: Reporter,
    backbone: "Backbone | None" = None,
    source: Source | None = None,
) -> Inputs:
    """Resolve the names in a request and report what the dataset holds. No weights are loaded.

    Args:
        request: the request.
        reporter: receives the summary of the dataset and its notes.
        backbone: a custom backbone, instead of one by name.
        source: a custom dataset, instead of one by name.

    Raises:
        RequestError, UnknownNameError: there is no such model or dataset.
        DatasetError: the dataset cannot be used.
    """
    if backbone is not None and request.changes_preprocessing:
        raise RequestError(
            "a backbone of your own brings its own preprocessing; leave --preprocess, --input-size and the like out, and change "
            "the transform that custom_backbone was given"
        )
    model = (
        resolve_model(request.model)
        if backbone is None
        else ModelName(request.model, "custom", request.model)
    )
    source = source or resolve_source(request.dataset, request, reporter)
    chosen = [name for name in source.splits if name in request.splits or not request.splits]
    summary = dataset_summary(source, chosen)
    reporter.message(f"{source.name}: {summary}")
    for note in source.notes:
        reporter.message(f"note: {note}")
    return Inputs(request, model, source, summary, backbone)
