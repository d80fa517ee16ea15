"""Options of a command, made from the fields of a request: names, help texts, types and defaults are stated there alone."""

from collections.abc import Callable
from functools import wraps
from types import UnionType
from typing import Any, TypeVar, get_args

import attrs
import click

from featcache.cli.options import SIZE, LocalPath
from featcache.store import parameters
from featcache.store.errors import RequestError
from featcache.store.parameters import Parameter

T = TypeVar("T")
Command = Callable[..., Any]

_TYPES: dict[str, Callable[[], "click.ParamType[Any]"]] = {
    parameters.SIZE: lambda: SIZE,
    parameters.PATH: LocalPath,
    parameters.FILE: lambda: LocalPath(dir_okay=False),
    parameters.FOLDER: lambda: LocalPath(file_okay=False),
}


def options_of(request: type[T], only_with: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Return a decorator that adds an option for each parameter of a request to a command.

    The command receives the request that was made of the options as `request`. What is not given is left to the request's
    own defaults.

    Args:
        request: class of the request.
        only_with: fields whose options ask for the request at all: without one of these, `request` is None and the other
            options are refused with a `RequestError`, which names the first.
    """
    stated = [(field, stated) for field, stated in parameters.parameters(request) if stated.option]
    starting = [parameter for field, parameter in stated if field.name in only_with]
    starts = starting[0] if starting else None

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_request(*args: Any, **given: Any) -> Any:
            values = {field.name: given.pop(field.name) for field, _ in stated}
            chosen = {name: value for name, value in values.items() if value is not None and value != ()}
            if starts is None or chosen.keys() & {*only_with}:
                return command(*args, request=request(**chosen), **given)
            for field, parameter in stated:
                if field.name in chosen:
                    start = f"{starts.option} {starts.metavar or ''}".rstrip()
                    raise RequestError(f"{parameter.option} is for {starts.option}; give {start} as well")
            return command(*args, request=None, **given)

        decorated: Command = with_request
        for field, parameter in reversed(stated):
            depends = f"With {starts.option}: " if starts and parameter not in starting else ""
            decorated = option_of(field, parameter, depends, required=starts is None)(decorated)
        return decorated

    return decorate


def option_of(
    field: "attrs.Attribute[Any]", parameter: Parameter, depends: str = "", *, required: bool = True
) -> Callable[[Command], Command]:
    """Return the option of one field.

    Args:
        field: field of the request.
        parameter: its statement.
        depends: beginning of the help text.
        required: whether an option without a default must be given.
    """
    settings: dict[str, Any] = {"help": depends + _help(field, parameter), "metavar": parameter.metavar}
    if field.type is bool or bool in get_args(field.type):
        settings |= {"is_flag": True, "default": None}
    elif parameter.form != parameters.TEXT:
        settings["type"] = _TYPES[parameter.form]()
    elif field.type is int or (isinstance(field.type, UnionType) and int in get_args(field.type)):
        settings["type"] = int
    return click.option(
        parameter.option or "",
        field.name,
        multiple=parameter.repeated,
        required=required and field.default is attrs.NOTHING,
        **settings,
    )


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
    # A number may be 0, which equals False.
    return "" if default is None or default is attrs.NOTHING or isinstance(default, bool) else str(default)
