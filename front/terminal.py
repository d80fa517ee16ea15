"""The standard streams, guarded: no name from elsewhere gives orders to a terminal, and no login reaches it."""

import codecs
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO, cast

from featcache.store.text import printable
from featcache.store.transfer.redaction import without_secrets

_CANDIDATE = "\n  "
_UNUSUAL = re.compile(r"[^\n -~]")


class Guarded:
    """A text stream that escapes control characters, and hides credentials, in all that is written to it.

    This is the last line of defense, for tracebacks, warnings of libraries and click's own messages: it has to keep line
    breaks. `echo` escapes those as well.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        """Write `text`, made safe."""
        self.unguarded.write(without_secrets(printable(text, keep="\n\t\r")))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write lines, made safe."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


def guard_streams() -> None:
    """Guard stdout and stderr from now on; a character that a stream cannot encode is escaped too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Guarded):
            continue
        if stream is None:  # closed by whoever started this process
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Guarded(stream))


def unguarded(stream: TextIO) -> TextIO:
    """The stream itself, for rich, which writes escape sequences on purpose; its texts must be escaped before."""
    return stream.unguarded if isinstance(stream, Guarded) else stream


def echo(line: str = "", err: bool = False) -> None:
    """Print one line to stdout or stderr; a line break in it is escaped, since it can only come from a name."""
    print(printable(line), file=sys.stderr if err else sys.stdout, flush=True)


def echo_error(message: str) -> None:
    """Print an error to stderr, with its list of candidates: each stands in a line of its own, indented by two spaces."""
    print(_CANDIDATE.join(map(printable, message.split(_CANDIDATE))), file=sys.stderr, flush=True)


def print_document(text: str) -> None:
    """Print a text of several lines to stdout: as it is into a file or a pipe, made safe on a terminal."""
    stream = cast(TextIO, sys.stdout)
    if stream.isatty():
        stream.write(printable(text, keep="\n\t"))
    else:
        unguarded(stream).write(text)


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print one JSON document to stdout, in ASCII where the stream has another encoding than UTF-8.

    Characters that are not printable are escaped as JSON does it: what a program reads is exactly what the document
    holds, halves of characters in file names that are not UTF-8 among it.
    """
    unicode = codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")
    text = json.dumps(document, indent=1, ensure_ascii=not unicode)
    unguarded(sys.stdout).write(_UNUSUAL.sub(_as_json, text) + "\n")


def _as_json(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]
