"""The argument behind ``KIND:`` on the command line: a place, and ``?name=value&...``."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.home import expanded


@dataclass
class Argument:
    """The argument of one kind of source."""

    source_type: str
    place: str
    fields: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, source_type: str, text: str, example: str) -> "Argument":
        """Take an argument apart.

        Raises:
            RequestError: there is none.
        """
        # The question mark of a glob is followed by no name=value.
        place, mark, query = text.rpartition("?")
        if not mark or "=" not in query:
            place, query = text, ""
        if not place:
            raise RequestError(f"{source_type} needs an argument: {example}")
        # An address may have a plus sign, a column has one rather often.
        return cls(source_type, place, dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)))

    @property
    def path(self) -> Path:
        """The place as a path."""
        return expanded(self.place)

    def file(self) -> Path:
        """Return the place as an existing file.

        Raises:
            RequestError: it is not.
        """
        if not os.path.isfile(self.path):  # Path.is_file raises if a parent folder may not be entered
            raise RequestError(f"{self.source_type} file {self.path!s:.300} does not exist or is not a file")
        return self.path

    def folder(self) -> Path:
        """Return the place as an existing folder.

        Raises:
            RequestError: it is not.
        """
        if not os.path.isdir(self.path):
            raise RequestError(
                f"{self.source_type} folder {self.path!s:.300} does not exist or is not a folder"
            )
        return self.path

    def require_fields(self, *known: str) -> None:
        """Refuse fields that mean nothing.

        Raises:
            UnknownNameError: there is one.
        """
        for name in self.fields:
            if name not in known:
                raise UnknownNameError(f"field of {self.source_type}", name, known)

    def names(self, name: str) -> list[str]:
        """Return the entries of a field that is a list with commas."""
        return [entry for entry in self.fields.get(name, "").split(",") if entry]
