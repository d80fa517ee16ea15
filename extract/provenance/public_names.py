"""Names and command lines that are safe to show to teammates: without paths, logins and queries."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from featcache.extraction.models.names import TRANSFORMERS, is_folder_name
from featcache.extraction.sources import SOURCE_TYPES
from featcache.store.text import encodable

# Values of these options are paths even if they do not look it, such as `acme/project`. `_OUTER` begins a certain path.
_PATH_OPTIONS = frozenset(("--weights", "--data"))
# Left out: the place of the caches is private, and the same cache results anywhere.
_ROOT_OPTION = "--root"
_OUTER = ("/", "~", ".")


def public_command(command: str) -> str:
    """Return a command line without its roots, every other path reduced to its last part, every address to its file."""
    return shlex.join(_public_arguments(shlex.split(command)))


def public_name(name: str) -> str:
    """Reduce the path or the address in the name of a model or a dataset, also one behind ``KIND:``, to its last part."""
    kind, colon, place = name.partition(":")
    if colon and kind in SOURCE_TYPES and not (kind == "hf" and not place.startswith(_OUTER)):
        return f"{kind}:{_last_part(place)}"
    if kind == TRANSFORMERS and is_folder_name(place):
        return f"{kind}:./{_last_part(place)}"
    if "://" in name or name.startswith(_OUTER):
        return _last_part(name)
    place, mark, query = name.partition("?")
    if mark:  # of the Hub
        fields = (field.partition("=") for field in query.split("&"))
        name = (
            f"{place}?{'&'.join(f'{field}{equals}{public_name(value)}' for field, equals, value in fields)}"
        )
    return encodable(name)


def _public_arguments(arguments: Sequence[str]) -> Iterator[str]:
    before = ""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if before == _ROOT_OPTION or option == _ROOT_OPTION:
            pass
        elif argument.startswith("-"):
            shown = _last_part(value) if option in _PATH_OPTIONS else public_name(value)
            yield f"{option}={shown}" if equals else encodable(argument)
        else:
            yield _last_part(argument) if before in _PATH_OPTIONS else public_name(argument)
        before = "" if before in (_ROOT_OPTION, *_PATH_OPTIONS) else argument


def _last_part(place: str) -> str:
    # Without the fields of a dataset, or the query of an address, which may be its signature.
    path = place.partition("?")[0].partition("#")[0] if "://" in place else _without_fields(place)
    if "://" in path:
        split = urlsplit(path)
        path = split.path if split.path.strip("/") else split.hostname or ""
    return encodable(PurePosixPath(path).name or path[:1])


def _without_fields(place: str) -> str:
    """Leave ``?name=value`` out; the question mark of a pattern stays."""
    path, mark, fields = place.rpartition("?")
    return path if mark and "=" in fields else place
