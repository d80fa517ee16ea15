"""Options of a command, made from the fields of a request: names, help texts, types and defaults are stated there alone."""

from collections.abc import Callable
from functools import wraps
from types import UnionType
from typing import Any, TypeVar, get_args

import attrs
import click

from featcache.cli.options import SIZE, LocalPath
from featcache.store import parameters
from featcache.store.parameters import Parameter

T = TypeVar("T")
Command = Callable[..., Any]

_TYPES: dict[str, Callable[[], "click.ParamType[Any]"]] = {
    parameters.SIZE: lambda: SIZE,
    parameters.PATH: LocalPath,
    parameters.FILE: lambda: LocalPath(dir_okay=False),
    parameters.FOLDER: lambda: LocalPath(file_okay=False),
}


def options_of(request: type[T]) -> Callable[[Command], Command]:
    """Return a decorator that adds an option for each parameter of a request to a command.

    The command receives the request that was made of the options as `request`. What is not given is left to the request's
    own defaults.
    """
    stated = [(field, stated) for field, stated in parameters.parameters(request) if stated.option]

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_request(*args: Any, **given: Any) -> Any:
            values = {field.name: given.pop(field.name) for field, _ in stated}
            chosen = {name: value for name, value in values.items() if _is_given(value)}
            return command(*args, request=request(**chosen), **given)

        decorated: Command = with_request
        for field, parameter in reversed(stated):
            decorated = option_of(field, parameter)(decorated)
        return decorated

    return decorate


def option_of(field: "attrs.Attribute[Any]", parameter: Parameter) -> Callable[[Command], Command]:
    """Return the option of one field."""
    settings: dict[str, Any] = {"help": _help(field, parameter), "metavar": parameter.metavar}
    if field.type is bool:
        settings["is_flag"] = True
    elif parameter.form != parameters.TEXT:
        settings["type"] = _TYPES[parameter.form]()
    elif field.type is int or (isinstance(field.type, UnionType) and int in get_args(field.type)):
        settings["type"] = int
    return click.option(
        parameter.option or "",
        field.name,
        multiple=parameter.repeated,
        required=field.default is attrs.NOTHING,
        **settings,
    )


def _is_given(value: object) -> bool:
    """Whether an option was given; a number may be 0, which equals False."""
    return value is not None and value is not False and value != ()


def _help(field: "attrs.Attribute[Any]", parameter: Parameter) -> str:
    how = "  Several with commas." if parameter.several else ""
    how = "  May be repeated." if parameter.repeated else how
    how = "  May be repeated, or a list with commas." if parameter.repeated and parameter.several else how
    how = "  Written such as 2GB." if parameter.form == parameters.SIZE else how
    default = parameter.default or default_words(field.default)
    text = parameter.help + how
    return f"{text}  [default: {default}]" if default else text


def default_words(default: Any) -> str:
    """Return a default as it is typed; empty where there is none, or nothing to say of it."""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default) if _is_given(default) and default is not attrs.NOTHING else ""
