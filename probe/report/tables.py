"""A table as text: for a terminal, or as CSV, Markdown or LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from featcache.store.files import JsonObject, finite_or_null
from featcache.store.text import escape_markdown, printable

if TYPE_CHECKING:
    import pandas

INTERVALS = "[low, high]: 95 % intervals over test images; of differences, over the same test images"
"""Note on numbers that have an interval."""


@dataclass(frozen=True)
class Number:
    """A value with what is known of its spread."""

    value: float
    deviation: float | None = None
    p_value: float | None = None
    signed: bool = False
    """Whether it is a difference."""
    best: bool = False
    """Whether it stands out in its row."""
    decimals: int = 2
    low: float | None = None
    high: float | None = None
    """Ends of the interval over test images, in the unit of `value`; None where there is none."""
    tied: bool = False
    """Whether it cannot be told from the best of its row."""

    @property
    def text(self) -> str:
        """The value alone; what rounds to zero has no sign of less."""
        # + 0.0 turns a negative zero into a positive one.
        return f"{round(self.value, self.decimals) + 0.0:{'+' if self.signed else ''}.{self.decimals}f}"

    @property
    def spread(self) -> str | None:
        """The deviation alone."""
        return None if self.deviation is None else f"{self.deviation:.{self.decimals}f}"

    @property
    def interval(self) -> str | None:
        """The interval over test images, such as ``[77.10, 83.00]``."""
        if self.low is None or self.high is None:
            return None
        ends = (replace(self, value=end).text for end in (self.low, self.high))
        return f"[{', '.join(ends)}]"

    @property
    def mark(self) -> str:
        """Stars of significance."""
        if self.p_value is None:
            return ""
        return "**" if self.p_value < 0.01 else "*" if self.p_value < 0.05 else ""


@dataclass(frozen=True)
class Interval:
    """Two ends."""

    low: Number
    high: Number

    @property
    def text(self) -> str:
        """Such as ``79.20 – 85.50``."""
        return f"{self.low.text} – {self.high.text}"


@dataclass(frozen=True)
class NoValue:
    """Reason for a missing interval: a text for people, and nothing for programs."""

    text: str


Value = str | int | Number | Interval | NoValue | None


@dataclass(frozen=True)
class Table:
    """Columns, and rows of values."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    notes: Sequence[str] = field(default=())
    """Lines below the table."""

    @property
    def numeric(self) -> list[str]:
        """Columns that hold numbers, which are aligned to the right."""
        return [
            name
            for index, name in enumerate(self.columns)
            if any(isinstance(row[index], Number | int) for row in self.rows)
        ]

    def cells(self) -> list[list[str]]:
        """The values as plain text."""
        return [[_plain(value) for value in row] for row in self.rows]

    def to_records(self) -> list[JsonObject]:
        """Return the rows by column, as ``featcache results --json`` prints them.

        A measured number is an object of ``value``, ``sd`` and ``p``, an interval a pair of ends.
        """
        return to_records(self)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the rows as a data frame, in full precision; a column with spreads or p values has ``... sd`` and ``... p`` beside it.

        An interval is a pair of ends.

        Raises:
            ImportError: pandas, which featcache does not need otherwise, is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("to_pandas() needs pandas: pip install pandas; to_records() does not") from None
        names, rows = _flat(self, _as_data)
        return pandas.DataFrame(rows, columns=names)


def _plain(value: Value) -> str:
    if isinstance(value, Interval | NoValue):
        return value.text
    if not isinstance(value, Number):
        return "" if value is None else f"{value:,}" if isinstance(value, int) else value
    spread = f" ± {value.spread}" if value.spread is not None else ""
    interval = f" {value.interval}" if value.interval is not None else ""
    return " ".join(
        [f"{value.text}{spread}{interval}", *filter(None, (value.mark, "≈" if value.tied else ""))]
    )


def to_records(table: Table) -> list[JsonObject]:
    """The rows as JSON objects by column; a measured number is an object of value, sd and p, and of low and high where it has an interval
    over test images; an interval alone is a pair."""

    def record(value: Value) -> object:
        if isinstance(value, Interval):
            return [value.low.value, value.high.value]
        if isinstance(value, NoValue):
            return None
        if isinstance(value, Number):
            interval = {} if value.low is None else {"low": value.low, "high": value.high}
            return {"value": value.value, "sd": value.deviation, "p": value.p_value, **interval}
        return value

    return [
        {name: finite_or_null(record(value)) for name, value in zip(table.columns, row, strict=True)}
        for row in table.rows
    ]


def to_csv(table: Table) -> str:
    """Return comma-separated values; a column with spreads or p values has columns ``... sd`` and ``... p`` beside it."""
    names, rows = _flat(table, _bare)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_short(value) for value in row])
    return buffer.getvalue()


def _flat(table: Table, bare: Callable[[Value], object]) -> tuple[list[str], list[list[object]]]:
    """Return the names of columns, those of deviations and p values among them, and rows of values, as `bare` makes them."""
    parts: list[tuple[int, str, Callable[[Value], object]]] = []
    for index, name in enumerate(table.columns):
        numbers = [row[index] for row in table.rows if isinstance(row[index], Number)]
        parts.append((index, name, bare))
        if any(isinstance(number, Number) and number.deviation is not None for number in numbers):
            parts.append((index, f"{name} sd", lambda v: v.deviation if isinstance(v, Number) else None))
        if any(isinstance(number, Number) and number.p_value is not None for number in numbers):
            parts.append((index, f"{name} p", lambda v: v.p_value if isinstance(v, Number) else None))
        if any(isinstance(number, Number) and number.low is not None for number in numbers):
            parts.append((index, f"{name} low", lambda v: v.low if isinstance(v, Number) else None))
            parts.append((index, f"{name} high", lambda v: v.high if isinstance(v, Number) else None))
    return [name for _, name, _ in parts], [[of(row[index]) for index, _, of in parts] for row in table.rows]


def _bare(value: Value) -> object:
    if isinstance(value, Interval):
        return f"{_short(value.low.value)} – {_short(value.high.value)}"
    if isinstance(value, NoValue):
        return value.text
    return value.value if isinstance(value, Number) else value


def _as_data(value: Value) -> object:
    if isinstance(value, Interval):
        return value.low.value, value.high.value
    if isinstance(value, NoValue):
        return None
    return value.value if isinstance(value, Number) else value


def _short(value: object) -> object:
    """Return fifteen digits of a float, one or two fewer than it has, which hides rounding such as 56.99999999999999."""
    return f"{value:.15g}" if isinstance(value, float) else value


def to_markdown(table: Table) -> str:
    """A GitHub table with the notes below; the best of a row is in bold, what ties with it in italics."""

    def cell(value: Value) -> str:
        if not isinstance(value, Number):
            return escape_markdown(_plain(value))
        text = escape_markdown(_plain(replace(value, tied=False)))
        return f"**{text}**" if value.best else f"*{text}*" if value.tied else text

    right = table.numeric
    lines = [
        [escape_markdown(name) for name in table.columns],
        ["---:" if name in right else "---" for name in table.columns],
        *([cell(value) for value in row] for row in table.rows),
    ]
    notes = "".join(f"\n{escape_markdown(note)}\n" for note in table.notes)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + notes


_LATEX: Mapping[str, str] = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    # LaTeX's usual encoding prints these three as other characters.
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    # A bracket at the start of a row would be read as an argument of the preceding line break, and two hyphens as a dash.
    "[": "{[}",
    "-": "-{}",
    "±": r"$\pm$",
    "–": "--",
}


def to_latex(table: Table) -> str:
    """A ``tabular`` with the rules of booktabs; the best of a row is in bold, what ties with it underlined; notes become comments."""
    right = table.numeric
    lines = [
        *(f"% {printable(note)}" for note in table.notes),
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{" + "".join("r" if name in right else "l" for name in table.columns) + "}",
        r"\toprule",
        " & ".join(_escape_latex(name) for name in table.columns) + r" \\",
        r"\midrule",
        *(" & ".join(_latex_cell(value) for value in row) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(value: Value) -> str:
    if not isinstance(value, Number):
        return _escape_latex(_plain(value))
    inner = f"\\mathbf{{{value.text}}}" if value.best else value.text
    inner = f"\\underline{{{inner}}}" if value.tied else inner
    spread = f" \\pm {value.spread}" if value.spread is not None else ""
    spread += f"\\;{value.interval}" if value.interval is not None else ""
    mark = f"^{{{value.mark}}}" if value.mark else ""
    return f"${inner}{spread}{mark}$"


def _escape_latex(text: str) -> str:
    text = re.sub(r"[&%$#_{}~^\\±–|<>\[]|-(?=-)", lambda match: _LATEX[match[0]], printable(text))
    # The same holds for a star after a line break.
    return f"{{*}}{text[1:]}" if text.startswith("*") else text


FORMATS: Mapping[str, Callable[[Table], str]] = {"csv": to_csv, "markdown": to_markdown, "latex": to_latex}
SUFFIXES: Mapping[str, str] = {".csv": "csv", ".md": "markdown", ".tex": "latex"}
