"""Protocols as TOML files: presets that come with the package, and one's own.

A file gives the fields of `featcache.probing.protocols.protocol.Protocol`, apart from the name, which is that of the file. Those that it does not
give are taken from the protocol that `base` names, by default ``paper``. No torch here.
"""

import sys
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from math import isfinite
from pathlib import Path
from typing import Any

from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.text import encodable, reason, shortened

BASE = "base"
SUFFIX = ".toml"

# The least normal number: torch may make this process take subnormal ones as 0.
_POSITIVE = (sys.float_info.min, float("inf"))
_NOT_NEGATIVE = (0.0, float("inf"))
_FRACTION = (0.0, 1.0)
RANGES: Mapping[str, tuple[float, float]] = {
    "learning_rates": _POSITIVE,
    "weight_decays": _NOT_NEGATIVE,
    "dropouts": (0.0, 0.95),
    "min_epochs": (1, 10**6),
    "min_steps": (1, 10**9),
    "max_batch_size": (2, 10**9),
    "min_batch_size": (2, 10**9),
    "min_batches": (1, 10**6),
    "lr_floor": _NOT_NEGATIVE,
    "grad_clip_norm": _POSITIVE,
    "jitter_probability": _FRACTION,
    "jitter_std": _NOT_NEGATIVE,
    "validation_fraction": (0.01, 0.9),
    "betas": (0.0, 0.9999999),
    "eps": _POSITIVE,
    "folds": (1, 100),
    "folds_below": (1, 10**9),
    "halving": (1, 100),
    "halving_min_steps": (1, 10**9),
}
"""Least and largest value of every number."""


def preset_names() -> list[str]:
    """Protocols that come with the package."""
    return sorted(entry.name.removesuffix(SUFFIX) for entry in _presets() if entry.name.endswith(SUFFIX))


def read_text(name: str) -> tuple[str, str]:
    """Name and text of a preset, or of a file where `name` ends with ``.toml``.

    Raises:
        UnknownNameError: there is no such preset.
        RequestError: there is no such file, or it cannot be read.
    """
    if name.endswith(SUFFIX):
        path = Path(name)
        try:
            return encodable(path.stem), path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise RequestError(
                f"the protocol {name} cannot be read ({reason}); `featcache protocols quick > mine.toml` makes one to begin with"
            ) from None
    if name not in preset_names():
        raise UnknownNameError("protocol", name, preset_names(), "(a file of one's own ends with .toml)")
    return name, (files("featcache.probing.protocols") / f"{name}{SUFFIX}").read_text(encoding="utf-8")


def parse(text: str, where: str, defaults: Mapping[str, Any], inputs: tuple[str, ...]) -> dict[str, Any]:
    """Read the fields of a protocol, without those of its base.

    Args:
        text: of the file.
        where: for errors.
        defaults: a value of the right type for every field there is.
        inputs: the valid input transforms.

    Raises:
        RequestError: the file is no TOML, or a value is of the wrong type or out of range.
        UnknownNameError: there is no such field or input transform.
    """
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise RequestError(
            f"{where} is not TOML: nested too deeply; a protocol has no lists of lists"
        ) from None
    except ValueError as error:  # an error of TOML, or a number with more digits than Python reads
        raise RequestError(f"{where} is not TOML: {reason(error)}") from None
    return check_fields(table, where, defaults, inputs)


def check_fields(
    table: Mapping[str, Any], where: str, defaults: Mapping[str, Any], inputs: tuple[str, ...]
) -> dict[str, Any]:
    """Check the types and ranges of a protocol's fields; arguments and errors as for `parse`. Lists become tuples."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name == BASE:
            if not isinstance(value, str):
                raise RequestError(f"{where}: base must be the name of a protocol, not {shortened(value)}")
            found[name] = value
        elif name not in defaults:
            raise UnknownNameError("field", name, (BASE, *defaults), f"(in {where})")
        else:
            found[name] = _checked(name, value, defaults[name], where)
    if found.get("input", inputs[0]) not in inputs:
        raise UnknownNameError("input transform", found["input"], inputs, f"(in {where})")
    return found


def _checked(name: str, value: Any, default: Any, where: str) -> Any:
    kind = "a list of numbers" if isinstance(default, tuple) else _kind_of(name, default)
    if isinstance(default, tuple):
        good = isinstance(value, list) and value and all(_is_number(item) for item in value)
        if name == "betas":
            kind, good = "a list of two numbers", good and len(value) == len(default)
        value = tuple(float(item) for item in value) if good else value
        if good and name != "betas" and len(set(value)) < len(value):
            raise RequestError(
                f"{where}: {name} has a value twice: {', '.join(f'{item:g}' for item in value)}"
            )
    elif kind == "a number":
        good = _is_number(value)
        value = float(value) if good else value
    else:
        types = {"true or false": bool, "text": str, "a whole number": int}
        good = type(value) is types[kind]
    if not good:
        raise RequestError(f"{where}: {name} must be {kind}, not {shortened(value)}")
    low, high = RANGES.get(name, (0, 0))
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers if name in RANGES else ():
        if not low <= number <= high:
            above = f" to {high:g}" if isfinite(high) else " or more"
            raise RequestError(
                f"{where}: {name} must lie in the range {'above 0' if low == _POSITIVE[0] else f'{low:g}{above}'}, not {_shown(number)}"
            )
    return value


def _kind_of(name: str, default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, str):
        return "text"
    return "a number" if isinstance(default, float) else "a whole number"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _shown(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else shortened(number)


def _presets() -> list[Traversable]:
    return list(files("featcache.probing.protocols").iterdir())
