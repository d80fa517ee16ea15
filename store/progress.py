"""How long work reports to whoever watches: the library calls, the front door decides what is shown."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Advance(Protocol):
    """Called with the number of units that were just done."""

    def __call__(self, done: int) -> None: ...


class Reporter(Protocol):
    """Receives messages and progress."""

    def message(self, text: str) -> None:
        """Say one line."""

    def progress(self, title: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Advance]:
        """Watch work of `total` units of which `done` were finished before."""


class Silent:
    """The reporter that shows nothing."""

    def message(self, text: str) -> None:
        """Say nothing."""

    def progress(self, title: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Advance]:
        """Show nothing."""
        return nullcontext(lambda done: None)
