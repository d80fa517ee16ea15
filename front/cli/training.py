"""The options of ``featcache probe`` that say how heads are chosen and trained, apart from the protocol's name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from featcache.store.errors import RequestError

Command = Callable[..., Any]

_OPTIONS = (
    click.option(
        "--input",
        help="Input stage: l2, standard (mean and deviation), l2+standard.  [default: the protocol's]",
    ),
    click.option(
        "--option",
        "options",
        multiple=True,
        metavar="NAME=NUMBER",
        help="What a head takes, such as hidden=512; see `featcache heads`.  May be repeated.",
    ),
    click.option("--shots", help="Train on so many samples of each class, such as 1,5,10."),
    click.option("--draws", default=1, show_default=True, help="How often few-shot samples are drawn."),
    click.option("--folds", type=int, help="Choose by so many folds of train.  [default: the protocol's]"),
    click.option(
        "--groups",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="CSV of sample_id and group: train samples of one group (a patient) are held out together when settings are chosen.",
    ),
    click.option(
        "--halving",
        type=int,
        help="Successive halving: keep one in so many members from round to round.  [default: the protocol's]",
    ),
    click.option(
        "--targets",
        "target_kind",
        help="single-label, multi-label or regression.  [default: what the cache's targets are]",
    ),
    click.option(
        "--loss", "regression_loss", default="mse", show_default=True, help="Of a regression: mse or mae."
    ),
)


def training_options(function: Command) -> Command:
    """Add the options to a command, which receives them as keywords; see `training_settings`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def training_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Turn what the options gave into fields of a `ProbeRequest`.

    Raises:
        RequestError: a list or a number that is none.
    """
    shots = given["shots"]
    return {
        **given,
        "options": dict(_parse_option(text) for text in given["options"]),
        "shots": () if shots is None else parse_numbers("shots", shots),
    }


def parse_numbers(what: str, text: str) -> tuple[int, ...]:
    """Read whole numbers that are separated by commas; doubled ones count once.

    Raises:
        RequestError: they are not.
    """
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise RequestError(f"{what} must be whole numbers separated by commas, got {text!r}") from None
    if min(numbers) < 0:
        raise RequestError(f"{what} must not be negative, got {text!r}")
    return numbers


def _parse_option(text: str) -> tuple[str, int]:
    name, sign, number = text.partition("=")
    if not sign or not number.strip().isdecimal():
        raise RequestError(f"an option of a head is such as hidden=512, not {text!r}")
    return name.strip().replace("-", "_"), int(number)
