"""Python functions that take the parameters of a request: their types, signature and docstring are those of the request's fields."""

import inspect
import textwrap
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from featcache.store.parameters import parameters

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

WIDTH = 100


def takes_parameters_of(request: Callable[P, T]) -> Callable[[Callable[[T], R]], Callable[P, R]]:
    """Make a function of a request into a function of the request's parameters.

    Type checkers see the parameters of the request's constructor, `help` its signature and an ``Args:`` section.

    Args:
        request: a class whose fields state their parameters; see `featcache.store.parameters`.
    """
    if not isinstance(request, type):
        raise TypeError(f"{request!r} is no class with stated parameters")
    stated = inspect.signature(request)

    def decorate(function: Callable[[T], R]) -> Callable[P, R]:
        @wraps(function)
        def with_parameters(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                stated.bind(*args, **kwargs)
            except TypeError as error:  # it names the constructor, which nobody has called
                raise TypeError(f"{function.__name__}() {error}") from None
            return function(request(*args, **kwargs))

        returned = inspect.signature(function).return_annotation
        signature = stated.replace(return_annotation=returned)
        with_parameters.__signature__ = signature  # type: ignore[attr-defined]
        with_parameters.__annotations__ = {
            **{name: one.annotation for name, one in signature.parameters.items()},
            "return": returned,
        }
        with_parameters.__doc__ = _with_arguments(inspect.getdoc(function) or "", arguments_section(request))
        return with_parameters

    return decorate


def arguments_section(request: type) -> str:
    """Return the ``Args:`` section of a docstring: the help text of every parameter, and its default where that says more."""
    lines = ["Args:"]
    for field, parameter in parameters(request):
        default = f" Default: {parameter.default}." if parameter.default else ""
        lines += textwrap.wrap(
            f"{field.name}: {parameter.help}{default}",
            WIDTH,
            initial_indent=" " * 4,
            subsequent_indent=" " * 8,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join(lines)


def _with_arguments(doc: str, arguments: str) -> str:
    """Insert a section in front of the first section of a docstring."""
    lines = doc.splitlines()
    sections = ("Returns:", "Raises:", "Example:")
    first = next((index for index, line in enumerate(lines) if line in sections), len(lines))
    return "\n".join([*lines[:first], *arguments.splitlines(), "", *lines[first:]]).rstrip()
