"""Output for people: messages and progress on stderr, tables and results on stdout; plain lines outside of a terminal.

All output of the command line passes through this module or `featcache.terminal.streams`, which makes it safe for terminals.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from featcache.store.progress import Update
from featcache.store.text import printable
from featcache.terminal.streams import Guarded, echo, guard_streams, print_document, print_json, unguarded

__all__ = [
    "ConsoleReporter",
    "echo",
    "format_duration",
    "format_size",
    "name_range",
    "print_document",
    "print_json",
    "print_table",
]

PLAIN_INTERVAL_S = 10.0
MAX_RICH_ROWS = 100


class ConsoleReporter:
    """Shows messages and progress, unless `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet

    def message(self, text: str) -> None:
        """Print one line to stderr."""
        if not self._quiet:
            echo(text, err=True)

    @contextmanager
    def progress(self, title: str, unit: str) -> Iterator[Update]:
        """Show done and total, units per second and time left: a bar on a terminal, else a line now and then."""
        if self._quiet:
            yield lambda done, total, /: None
        elif sys.stderr.isatty():
            with _bar(title, unit) as update:
                yield update
        else:
            lines = _ProgressLines(title, unit)
            yield lines.update
            lines.close()


class _Rate:
    """Units per second since the first update, which tells what was done before."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def update(self, done: int) -> float:
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
        before, started = self._first
        return (done - before) / max(now - started, 1e-9)


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}  {{task.fields[speed]}}"),
    )
    rate = _Rate()
    guarded = isinstance(sys.stderr, Guarded)
    with Progress(*columns, console=Console(file=unguarded(sys.stderr))) as progress:
        if guarded:
            guard_streams()  # rich replaces the streams until the bar ends
        task = progress.add_task(printable(title), total=None, speed="")

        def update(done: int, total: int, /) -> None:
            progress.update(task, completed=done, total=total, speed=_speed(rate.update(done), total - done))

        yield update


class _ProgressLines:
    """Progress for logs."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._rate = _Rate()
        self._printed = time.monotonic()
        self._start: int | None = None
        self._shown = False
        self._line = ""

    def update(self, done: int, total: int, /) -> None:
        speed = _speed(self._rate.update(done), total - done)
        self._line = f"{self._title}: {done}/{total} {self._unit}" + (f", {speed}" if speed else "")
        self._start = done if self._start is None else self._start
        # Show the first step at once, so that a log shows that work has begun.
        begun = not self._shown and done > self._start
        if begun or time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._print()

    def close(self) -> None:
        if self._line:
            self._print()

    def _print(self) -> None:
        self._printed, self._shown = time.monotonic(), True
        echo(self._line, err=True)
        self._line = ""


def _speed(rate: float, left: int) -> str:
    """Return units per second, and the time that is left."""
    if not rate:
        return ""
    return f"{rate:.1f}/s, {format_duration(left / rate)} left" if left else f"{rate:.1f}/s"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str] = ()) -> None:
    """Print a table to stdout; the columns in `numeric` are aligned to the right."""
    numeric = [printable(column) for column in numeric]
    columns, *rows = [[printable(cell) for cell in row] for row in (columns, *rows)]
    # rich takes most of a millisecond a row, so a table too long for a screen is plain on a terminal too.
    if not sys.stdout.isatty() or len(rows) > MAX_RICH_ROWS:
        print("\n".join(_plain_lines([columns, *rows], [column in numeric for column in columns])))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(Text(column), justify="right" if column in numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # A narrow terminal wraps whole lines, which reads better than cells folded to a few letters. Without a height as well,
    # rich would cut them to 80 columns on a dumb terminal.
    Console(width=10_000, height=25, file=unguarded(sys.stdout)).print(table)


def _plain_lines(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Iterator[str]:
    lengths = [[_cells(cell) for cell in row] for row in rows]
    widths = [max(column) for column in zip(*lengths, strict=True)]
    for row, taken in zip(rows, lengths, strict=True):
        padding = [" " * (width - length) for width, length in zip(widths, taken, strict=True)]
        cells = zip(row, padding, right, strict=True)
        yield "  ".join(pad + cell if to_right else cell + pad for cell, pad, to_right in cells).rstrip()


def _cells(text: str) -> int:
    """Return the number of columns that `text` takes on a terminal, where some characters are two wide."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def format_size(num_bytes: float) -> str:
    """Format a number of bytes, such as ``40.1 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def format_duration(seconds: float) -> str:
    """Format seconds, such as ``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def name_range(names: Sequence[str]) -> str:
    """Format names of layers or tokens: ``0 to 11`` for many in a row, ``cls, ap`` for a few."""
    if len(names) > 3 and names[0].isdigit():
        in_a_row = [str(int(names[0]) + step) for step in range(len(names))] == [*names]
    else:
        in_a_row = len(names) > 3
    return f"{names[0]} to {names[-1]}" if in_a_row else ", ".join(names)
