"""Parameters of requests, each stated once: where its request declares the field.

A request is a frozen attrs class. A field's converter parses what was given, in Python or as text of the command line, so that a
request holds parsed values; its metadata hold a `Parameter`. The front room makes options (`featcache.cli.request_options`) and the
signatures and docstrings of Python functions (`featcache.api.signatures`) of the same fields. attrs is used because type checkers know
from a converter which types a field accepts, which the standard library's dataclasses cannot express.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs

from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.text import parse_names

TEXT, PATH, FILE, FOLDER, SIZE = ("text", "path", "file", "folder", "size")
_KEY = "featcache"


@dataclass(frozen=True)
class Parameter:
    """Everything about a field of a request that its name, type and default do not say."""

    help: str
    """Plain sentences for ``--help``, docstrings and documents: which values are possible, units, what they do."""
    option: str | None = None
    """Option of the command line, such as ``--tap``; None if it has none."""
    python_only: str = ""
    """The reason why there is no option."""
    default: str = ""
    """Words for the default where the field's default is None: ``by head``."""
    metavar: str | None = None
    """Placeholder of the value in ``--help``; by default the name of its type."""
    form: str = TEXT
    """Form of the text on the command line where the field's type does not tell it: a path, file, folder or size."""
    several: bool = False
    """Whether the option takes a list with commas."""
    repeated: bool = False
    """Whether the option may be repeated."""


def parameter(help: str, option: str | None = None, **more: Any) -> Mapping[str, Parameter]:
    """Return the metadata of a field; arguments as for `Parameter`."""
    return {_KEY: Parameter(help, option, **more)}


def parameters(request: type) -> Iterator[tuple["attrs.Attribute[Any]", Parameter]]:
    """Yield the fields that a request's constructor takes, in its order, with the parameter of each.

    Raises:
        TypeError: a field does not state its parameter.
    """
    for field in sorted(attrs.fields(request), key=lambda field: bool(field.kw_only)):
        if not field.init:
            continue
        if _KEY not in field.metadata:
            raise TypeError(
                f"{request.__name__}.{field.name} has no help text; give it metadata=parameter(...)"
            )
        yield field, field.metadata[_KEY]


def one_of(what: str, choices: Collection[str]) -> Callable[[Any, "attrs.Attribute[Any]", str | None], None]:
    """Return a validator that accepts the names in `choices`, and None.

    Args:
        what: the thing that has a name, for the `UnknownNameError`.
        choices: valid names.
    """

    def check(request: object, field: "attrs.Attribute[Any]", name: str | None) -> None:
        if name is not None and name not in choices:
            raise UnknownNameError(what, name, choices)

    return check


def as_path(given: str | Path) -> Path:
    """Convert a path given as text."""
    return Path(given)


def as_optional_path(given: str | Path | None) -> Path | None:
    """Convert a path given as text; None stays None."""
    return None if given is None else Path(given)


def as_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Convert names, or a list of names with commas."""
    return parse_names(given) if isinstance(given, str) else tuple(given)


def whole_numbers(what: str, given: str | Sequence[int]) -> tuple[int, ...]:
    """Convert whole numbers, or a list of them with commas, in which a repeated number counts once.

    Raises:
        RequestError: the text is no list of whole numbers, or has a negative number.
    """
    if not isinstance(given, str):
        return tuple(given)
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in given.split(",")))
    except ValueError:
        raise RequestError(f"{what} must be whole numbers separated by commas, got {given!r}") from None
    if min(numbers) < 0:
        raise RequestError(f"{what} must not be negative, got {given!r}")
    return numbers


DEVICE = parameter("Device to run on: auto, cpu, cuda, cuda:1 or mps.", "--device")
"""The same parameter of every request that computes something."""
PROGRESS = parameter(
    "Show messages and progress on stderr.", python_only="--json decides it on the command line"
)
