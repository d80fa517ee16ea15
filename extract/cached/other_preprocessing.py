"""Say which caches there are that differ from a request in nothing but their preprocessing, before a backbone runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.extraction.models.names import ModelName
from featcache.extraction.models.preprocessing import PAPER, Preprocessing, preset
from featcache.extraction.requests.preprocessing import PREPROCESSING, options_for
from featcache.store.catalogue import scan
from featcache.store.files import JsonObject
from featcache.store.requests import answers, recorded_requests

MAX_NOTES = 3
_LEFT_OPEN = (PREPROCESSING, "resize")
"""Fields of a literal request that are not compared."""


def notes_on_others(
    search: Sequence[Path],
    requests: Sequence[JsonObject],
    name: ModelName,
    remembered: Iterable[tuple[str, Sequence[JsonObject]]] = (),
) -> Iterator[str]:
    """Yield a note for each preprocessing of which there is a cache of the same model and dataset.

    Args:
        search: the roots.
        requests: the literal requests that no cache answers.
        name: the model.
        remembered: places of caches on remotes, and the literal requests that each of them remembers.
    """
    places = [
        (f"{entry.path}{'' if entry.complete else ' (unfinished)'}", recorded_requests(entry.path))
        for entry in scan(search)
    ]
    alike: dict[str, tuple[str, JsonObject]] = {}
    for place, recorded in [*places, *remembered]:
        for other in recorded:
            if any(answers(_bare(other), _bare(request)) for request in requests):
                alike.setdefault(_asked(other), (place, other))
    # A run that resumes or adds to a cache makes no other one.
    if any(_asked(request) in alike for request in requests):
        return
    for place, other in list(alike.values())[:MAX_NOTES]:
        yield _note(place, other, name)
    if len(alike) > MAX_NOTES:
        yield f"there are {len(alike) - MAX_NOTES} more such caches; `featcache ls` lists all"


def _asked(request: Mapping[str, Any]) -> str:
    """Return a text for the preprocessing of a literal request, equal for equal ones."""
    return repr(request.get(PREPROCESSING))


def _bare(request: Mapping[str, Any]) -> JsonObject:
    return {field: value for field, value in request.items() if field not in _LEFT_OPEN}


def _note(place: str, other: Mapping[str, Any], name: ModelName) -> str:
    stated = other.get(PREPROCESSING)
    wanted = (
        Preprocessing.from_dict(stated)
        if isinstance(stated, dict)
        else preset(name, PAPER)
        if stated is None
        else None
    )
    options = None if wanted is None else options_for(wanted, name)
    how = (
        "with preprocessing that no options give"
        if options is None
        else f"{options} takes it"
        if options
        else "leave the options of preprocessing out to take it"
    )
    return f"{place} has the same model and dataset in another preprocessing: {how}; this run makes another cache"
