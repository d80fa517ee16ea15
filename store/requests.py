"""request.json: the literal requests that a cache answers.

The key needs the loaded backbone; a literal request needs nothing heavy. So a second run finds its answer at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, read_sealed, write_sealed

REQUEST_FILE = "request.json"
AUTO = "auto"


def recorded_requests(directory: Path) -> list[JsonObject]:
    """Requests recorded for the cache at `directory`; none if the file is absent or damaged (it is only a shortcut)."""
    try:
        requests = read_sealed(directory / REQUEST_FILE).get("requests")
    except (FileNotFoundError, CacheError):
        return []
    return (
        [request for request in requests if isinstance(request, dict)] if isinstance(requests, list) else []
    )


def record_request(directory: Path, request: Mapping[str, Any]) -> None:
    """Remember that the cache at `directory` answers `request`."""
    requests = recorded_requests(directory)
    if request not in requests:
        write_sealed(directory / REQUEST_FILE, {"requests": [*requests, dict(request)]})


def answers(recorded: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Whether a recorded request is the same as `request`; precision ``auto`` accepts whatever there is."""
    return (
        {**recorded, "precision": AUTO} == request
        if request.get("precision") == AUTO
        else recorded == request
    )
