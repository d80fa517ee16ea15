"""Read a table as text from any program: its encoding, separator, header and rows."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from featcache.store.errors import DatasetError, RequestError

MAX_TABLE_BYTES = 2**31
SEPARATORS = ",;\t|"
_INDEX_NAME = re.compile(r"(Unnamed: \d+(\.\d+)?)?")
"""Headers of unnamed columns: empty as pandas writes them, or the names that pandas gives on reading them back."""
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?')


@dataclass
class Table:
    """A table of text; values are stripped of white space."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def column(self, name: str) -> list[str]:
        """Return the values of a column."""
        place = self.header.index(name)
        return [row[place] for row in self.rows]


def read_table(path: Path, encoding: str | None = None) -> Table:
    """Read a table separated by commas, semicolons, tabs or bars, with a header; quoted fields may hold line ends.

    Unnamed columns are left out: the index that pandas writes, and the text behind a separator at every line's end.

    Args:
        path: the file.
        encoding: text encoding; if None, UTF-8, or UTF-16 with a byte order mark.

    Raises:
        RequestError: the encoding does not exist.
        DatasetError: the file cannot be read as a table; the message says where.
    """
    text = _text(path, encoding)
    separator, text = _separator(text)
    # str.splitlines would also split at U+2028, form feeds and the like, and at line ends inside of quotes.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines = list(_lines(reader, path))
    if not lines:
        raise DatasetError(f"{path} is empty; it needs a header such as path,label")
    header = [name.strip() for name in lines[0]]
    named = [name for name in header if not _INDEX_NAME.fullmatch(name)]
    if len(set(named)) < len(named):
        raise DatasetError(f"{path}: columns have the same name: {', '.join(header)}")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise DatasetError(f"{path}: row {number} has {len(line)} fields, the header {len(header)}")
    rows = [[value.strip() for value in line] for line in lines[1:]]
    return _without_unnamed(path, header, rows)


def _text(path: Path, encoding: str | None) -> str:
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise DatasetError(
                f"{path} has more than {MAX_TABLE_BYTES:,} bytes; is it a table of paths and labels?"
            )
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror})") from None
    usual = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding or usual)
    except LookupError:
        raise RequestError(
            f"encoding {encoding!r} of {path} is unknown; write such as latin-1 or cp1252"
        ) from None
    except UnicodeError as error:
        place = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        name = "UTF-16" if usual == "utf-16" else "UTF-8"
        raise DatasetError(
            f"{path} is not {encoding or name}{place}; save it as UTF-8, or name its encoding as in "
            "csv:FILE?encoding=latin-1"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DatasetError(f"{path}: line {line} has a NUL character; is it a table in UTF-8?")
    return text


def _separator(text: str) -> tuple[str, str]:
    """Return the separator, and the text behind a line ``sep=;`` as Excel reads and writes it."""
    first, _, rest = text.partition("\n")
    told = _SEPARATOR_LINE.fullmatch(first.strip("\r"))
    if told:
        return told[1], rest
    return max(SEPARATORS, key=re.sub(r'"[^"]*"', "", first).count), text


def _lines(reader: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    try:
        yield from (line for line in reader if line)
    except csv.Error as error:
        raise DatasetError(f"{path} cannot be read as CSV ({error})") from None


def _without_unnamed(path: Path, header: list[str], rows: list[list[str]]) -> Table:
    unnamed = [place for place, name in enumerate(header) if _INDEX_NAME.fullmatch(name)]
    if not unnamed:
        return Table(header, rows)
    for place in unnamed:
        values = [row[place] for row in rows]
        # An index counts the rows, or the rows that a selection left.
        if any(values) and (place > 1 or not all(re.fullmatch(r"\d+", value) for value in values)):
            raise DatasetError(f"{path}: column {place + 1} has values and no name; name it in the header")
    kept = [place for place in range(len(header)) if place not in unnamed]
    notes = [f"{path.name}: the column without a name (the index that pandas writes) is not read"]
    return Table([header[p] for p in kept], [[row[p] for p in kept] for row in rows], notes)
