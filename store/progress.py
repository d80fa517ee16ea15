"""Progress reports of long work: the library calls the reporter, the front door decides what is shown."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Update(Protocol):
    """Called with the units done so far and the units in all; the first call says what was done before."""

    def __call__(self, done: int, total: int, /) -> None: ...


class Reporter(Protocol):
    """Receives messages and progress."""

    def message(self, text: str) -> None:
        """Say one line."""

    def progress(self, title: str, unit: str) -> AbstractContextManager[Update]:
        """Watch one piece of work, counted in `unit`."""


class Silent:
    """The reporter that shows nothing."""

    def message(self, text: str) -> None:
        """Say nothing."""

    def progress(self, title: str, unit: str) -> AbstractContextManager[Update]:
        """Show nothing."""
        return nullcontext(lambda done, total, /: None)
