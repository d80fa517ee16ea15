"""request.json: the literal requests that a cache answers.

The key needs the loaded backbone; a literal request needs nothing heavy. So a second run finds its answer at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, read_sealed, write_sealed
from featcache.store.spec import BF16

REQUEST_FILE = "request.json"
FILES = "files"
MAX_FILE_RECORDS = 8
"""Number of file states kept per dataset, since the same dataset may lie in several places that are used in turn."""
AUTO = "auto"


def recorded_requests(directory: Path) -> list[JsonObject]:
    """Return requests recorded for the cache at `directory`; none if the file is absent or damaged (it is only a shortcut)."""
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
        _write(directory, [*requests, dict(request)], recorded_files(directory))


def recorded_files(directory: Path) -> list[JsonObject]:
    """Return the file states recorded when the dataset's files last matched the cache, oldest first."""
    try:
        files = read_sealed(directory / REQUEST_FILE).get(FILES)
    except (FileNotFoundError, CacheError):
        return []
    return [record for record in files if isinstance(record, dict)] if isinstance(files, list) else []


def record_files(directory: Path, record: Mapping[str, Any]) -> None:
    """Record the states of a dataset's files, in addition to the last few."""
    files = recorded_files(directory)
    if record not in files:
        _write(directory, recorded_requests(directory), [*files, dict(record)][-MAX_FILE_RECORDS:])


def _write(directory: Path, requests: Sequence[JsonObject], files: Sequence[JsonObject]) -> None:
    document: JsonObject = {"requests": list(requests)}
    # The document of a cache whose dataset has no files does not change.
    write_sealed(directory / REQUEST_FILE, {**document, FILES: list(files)} if files else document)


def answers(recorded: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Return whether a recorded request is the same as `request`; ``auto`` accepts every precision but bfloat16 weights.

    Those are less exact, so they answer only a request that names them.
    """
    if request.get("precision") == AUTO and recorded.get("precision") != BF16:
        return {**recorded, "precision": AUTO} == request
    return recorded == request
