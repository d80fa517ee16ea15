"""A reporter for tests."""

from featcache.store.progress import Silent


class RecordingReporter(Silent):
    """Remembers what the user is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        """Remember it."""
        self.messages.append(text)
