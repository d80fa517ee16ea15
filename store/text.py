"""Text from elsewhere, made fit for a terminal; sizes as people write them."""

import re
import textwrap

_UNITS = {
    "": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


def parse_size(text: str) -> int | None:
    """Return the bytes that a size such as ``2GB`` or ``500 MiB`` stands for; None if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        return None
    return int(float(match[1]) * _UNITS[match[2]])


def format_bytes(size: int) -> str:
    """Return a readable size with about three digits, such as ``12.3 MB`` or ``4.7 GB``."""
    for unit in ("GB", "MB", "kB"):
        if size >= _UNITS[unit.lower()]:
            value = size / _UNITS[unit.lower()]
            return f"{value:,.{0 if value >= 100 else 1}f} {unit}"
    return f"{size} bytes"


def rough_duration(seconds: float) -> str:
    """Format an approximate duration, such as ``42 s`` or ``12 min``."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def printable(text: str, keep: str = "") -> str:
    """Return `text` with every character escaped that would move the cursor, clear the screen or not be printed at all.

    Args:
        text: a name or message; file names that are not UTF-8 come with lone surrogates.
        keep: characters that stay nevertheless.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode()
        for character in text
    )


def is_utf8(text: str) -> bool:
    """Return whether UTF-8 can hold a text; it cannot hold lone surrogates, which JSON and file names can."""
    return encodable(text) == text


def encodable(text: str) -> str:
    """Escape the bytes of a file name that are not UTF-8; Python holds them as lone surrogates, which no document can store."""
    return text.encode("utf-8", "backslashreplace").decode()


def shortened(value: object, most: int = 60) -> str:
    """Return the repr of a value, cut to a length that suits an error message."""
    try:
        text = repr(value)
    except ValueError:  # Python does not convert integers of thousands of digits
        return "a number of thousands of digits"
    except RecursionError:
        return "lists in lists"
    return text if len(text) <= most else f"{text[:most]}..."


_MARKDOWN_PUNCTUATION = re.compile(r"[\\`*_{}\[\]|~$#!]")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it literally, also in table cells: one line without markup, HTML or formulas."""
    text = _MARKDOWN_PUNCTUATION.sub(lambda match: f"\\{match[0]}", printable(text))
    return _ENTITY.sub("&amp;", text).replace("<", "&lt;").replace(">", "&gt;")


def escape_cell(text: str) -> str:
    """Escape text for a cell of a Markdown table, keeping links and emphasis: no border, no backslash escape, no HTML."""
    return text.replace("\\", r"\\").replace("|", r"\|").replace("<", "&lt;")


def reason(error: BaseException) -> str:
    """Return the error of a library in one line of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch's first line ends in a colon and says nothing yet.
    line = next((line for line in lines if not line.endswith(":")), "")
    # The text of a KeyError, for one, is just the key.
    return textwrap.shorten(
        line if " " in line else f"{type(error).__name__} {line}".rstrip(), 200, placeholder=" ..."
    )


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names in a list with commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
