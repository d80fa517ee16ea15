"""Read the address that the card of a pushed cache names; pulled copies have this card too."""

import re
from contextlib import suppress
from pathlib import Path

from featcache.store.errors import CacheError
from featcache.store.regular_files import read_regular

CARD_FILE = "README.md"
MAX_CARD_BYTES = 2**20
SHARED = "<!-- what follows was written by featcache push, and is written again by the next one -->"
_PULL = re.compile(r"^    featcache pull (.+)$", re.MULTILINE)


def card_origin(directory: Path) -> str | None:
    """Return the address in the card of a copy, for copies pulled before origin.json; None if the card has none.

    Use it in messages alone: the card is untrusted, so the address is not contacted unless the user asks for it.
    """
    with suppress(OSError, CacheError):
        card = read_regular(directory / CARD_FILE, MAX_CARD_BYTES).decode(errors="replace")
        match = _PULL.search(card.partition(SHARED)[2])
        return match[1] if match else None
    return None
