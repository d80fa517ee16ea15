"""Which caches a grid of models and datasets means, and the error of those that could not be probed."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from featcache.extraction.models.names import model_names
from featcache.store.catalogue import completed_last, report_unreadable, select
from featcache.store.errors import FeatcacheError, RequestError
from featcache.store.reading.reader import Cache, open_cache
from featcache.store.text import parse_names
from featcache.terminal.console import ConsoleReporter


class GridError(FeatcacheError):
    """Some caches of a grid could not be probed."""

    def __init__(self, failures: Mapping[str, FeatcacheError]) -> None:
        """Build the message: what went wrong with which cache."""
        listed = "\n  ".join(f"{name}: {error}" for name, error in failures.items())
        many = "1 cache was" if len(failures) == 1 else f"{len(failures)} caches were"
        super().__init__(f"{many} passed over, in whole or in part:\n  {listed}")


def open_caches(
    search: Sequence[Path], cache: str | None, model: str | None, dataset: str | None, allow_partial: bool
) -> list[Cache]:
    """The caches of every model and dataset named; the one completed last if nothing is."""
    if not (cache or model or dataset):
        report_unreadable(search, ConsoleReporter())
        return [open_cache(completed_last(search).path, allow_partial=allow_partial)]
    models, datasets = _names(model), _names(dataset)
    found: dict[Path, Cache] = {}
    errors: list[FeatcacheError] = []
    for wanted_dataset, wanted_model in product(datasets, models):
        names = model_names(wanted_model) if wanted_model else ()
        try:
            entry = select(search, cache, names, wanted_dataset)
            found.setdefault(entry.path, open_cache(entry.path, allow_partial=allow_partial))
        except FeatcacheError as error:
            if len(models) == len(datasets) == 1:
                raise
            errors.append(error)
    if errors:
        total = len(models) * len(datasets)
        listed = "\n  ".join(str(error).partition("; there are:")[0] for error in errors)
        raise RequestError(
            f"{len(errors)} of {total} caches cannot be taken; extract them, or leave their names out:\n  {listed}"
        )
    return list(found.values())


def _names(text: str | None) -> list[str | None]:
    """The names in a list such as ``x,y``; None for any."""
    return [*parse_names(text or "")] or [None]
