"""Options that all commands share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.store.address import is_address
from featcache.store.home import expanded
from featcache.store.targets import TARGET_KINDS
from featcache.store.text import parse_size

Command = Callable[..., Any]

# Click's types take parameters only in newer versions, and type checkers require them.
if TYPE_CHECKING:
    _IntegerType = click.ParamType[int]
else:
    _IntegerType = click.ParamType


class _Size(_IntegerType):
    """A number of bytes, such as ``2GB`` or ``500 MiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        size = parse_size(value)
        if size is None:
            self.fail(f"{value!r} is not a size; write such as 2GB or 500MB", param, ctx)
        return size


SIZE = _Size()


class LocalPath(click.Path):
    """A file or folder of this machine, with ``~`` expanded; an address is refused and not shown, since pathlib would accept it."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay, dir_okay=dir_okay)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Return the path."""
        if is_address(os.fsdecode(value)):
            self.fail("an address was given; name a file or folder of this machine", param, ctx)
        return super().convert(expanded(os.fsdecode(value)), param, ctx)


_ROOT = click.option(
    "--root",
    multiple=True,
    type=LocalPath(file_okay=False),
    metavar="DIR",
    help="Folder of the caches; may be repeated, new caches go to the first. "
    "[default: $FEATCACHE_ROOT, else the user's cache folder]",
)
_OUTPUT = (
    click.option("--json", "as_json", is_flag=True, help="Print JSON for programs; no progress."),
    # Only main() looks at it, on the command line itself.
    click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
)


_DATASET_OPTIONS = (
    click.option(
        "--data",
        type=LocalPath(file_okay=False),
        metavar="DIR",
        help="Folder of a local copy, laid out as on the Hub.",
    ),
    click.option(
        "--revision",
        help="Commit, branch or tag on the Hub; with --data, what the copy is of.  [default: main]",
    ),
    click.option("--target", default="auto", show_default=True, help=f"{', '.join(TARGET_KINDS)}, or auto."),
    click.option(
        "--limit", type=int, help="At most this many samples of each split, stratified, for a trial."
    ),
    click.option(
        "--split-seed",
        type=int,
        default=0,
        show_default=True,
        help="Seed of the 75/25 split where the dataset has none of its own.",
    ),
    click.option(
        "--test-split",
        metavar="NAMES",
        help="The dataset's own splits to test on, with commas; where none is called test, the first goes by that name.",
    ),
    click.option(
        "--train-split",
        metavar="NAME",
        help="The dataset's own split to train on, where it is not called train in some spelling.",
    ),
    click.option(
        "--group-by",
        metavar="COLUMN",
        help="Keep samples of one group, such as a patient, in one split.",
    ),
    click.option(
        "--resplit", is_flag=True, help="Put the dataset's own splits together and split 75/25 anew."
    ),
    click.option(
        "--pixel-range",
        default="auto",
        show_default=True,
        metavar="RANGE",
        help="Black and white of images of more than 8 bits: a number of bits such as 12, or LOW..HIGH such as 0..1. "
        "auto takes all 16 bits of 16-bit images and refuses other types.",
    ),
    click.option(
        "--exif-orientation",
        default="ignore",
        show_default=True,
        help="ignore takes pixels as they are stored, apply turns them as their EXIF orientation says.",
    ),
    click.option(
        "--max-pixels",
        type=int,
        metavar="N",
        help="Pixels of the largest image that is decoded.  [default: 178956970]",
    ),
)


def dataset_options(function: Command) -> Command:
    """Add the options of a dataset to a command; ``--test-split`` comes as one text."""
    for option in reversed(_DATASET_OPTIONS):
        function = option(function)
    return function


def common_options(function: Command) -> Command:
    """Add ``--root``, ``--json`` (as `as_json`) and ``--debug`` to a command."""
    return _ROOT(output_options(function))


def output_options(function: Command) -> Command:
    """Add ``--json`` (as `as_json`) and ``--debug`` to a command that looks at no cache."""
    for option in reversed(_OUTPUT):
        function = option(function)
    return function
