"""Read the license that the card of a dataset names, without a YAML parser: a card is untrusted, and one field is enough."""

import re
from pathlib import Path

from featcache.store.text import printable

MAX_HEAD_BYTES = 2**16
"""Bytes of a card that are read; the license stands in its first lines."""
MAX_LICENSE = 200
_HEAD = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(\n|\Z)", re.DOTALL)
_LICENSE = re.compile(r"^license:[ \t]*(.*)((?:\n[ \t]*-[ \t]+.*)*)", re.MULTILINE)


def card_license(path: Path) -> str | None:
    """Return the license in the head of a card, ``license: cc-by-4.0`` or a list; None if there is none in plain text."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            text = file.read(MAX_HEAD_BYTES).decode("utf-8", "replace")
    except OSError:  # the images can still be read
        return None
    head = _HEAD.match(text.replace("\r\n", "\n"))
    match = _LICENSE.search(head[1]) if head else None
    if match is None:
        return None
    inline = match[1].strip()
    values = re.findall(r"-[ \t]+(.*)", match[2]) if not inline else _inline(inline)
    plain = [text for value in values if (text := value.split(" #")[0].strip().strip("'\""))]
    # Anchors, tags and nested structures are not a license.
    if not plain or any(text[0] in "&*!{[|>" for text in plain):
        return None
    return printable(", ".join(plain))[:MAX_LICENSE]


def _inline(text: str) -> list[str]:
    listed = text.startswith("[") and text.endswith("]")
    return text[1:-1].split(",") if listed else [text]
