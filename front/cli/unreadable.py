"""Say which folders of a root were passed over because they cannot be read."""

from collections.abc import Sequence
from pathlib import Path

from featcache.store.catalogue import unreadable
from featcache.store.progress import Reporter


def say_unreadable(search: Sequence[Path], reporter: Reporter) -> None:
    """Say it in one line for each folder, where a command takes any cache, or all of them."""
    for one in unreadable(search):
        reporter.message(f"note: {one}")
