"""What the card of a pushed cache tells about where it was pushed to; a copy has that card."""

import re
from contextlib import suppress
from pathlib import Path

from featcache.store.errors import CacheError
from featcache.store.plain import read_plain

CARD_FILE = "README.md"
MAX_CARD_BYTES = 2**20
SHARED = "<!-- what follows was written by featcache push, and is written again by the next one -->"
_PULL = re.compile(r"^    featcache pull (.+)$", re.MULTILINE)


def card_origin(directory: Path) -> str | None:
    """Address that the card of a copy names, for copies that were pulled before origin.json; None if it names none.

    It is for messages alone: whoever pushed wrote it, so nothing is asked for there unless the user says so.
    """
    with suppress(OSError, CacheError):
        card = read_plain(directory / CARD_FILE, MAX_CARD_BYTES).decode(errors="replace")
        found = _PULL.search(card.partition(SHARED)[2])
        return found[1] if found else None
    return None
