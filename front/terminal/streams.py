"""Guard the standard streams: no control character in a name, and no login, reaches a terminal."""

import codecs
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO, cast

from featcache.store.redaction import without_secrets
from featcache.store.text import printable

_CANDIDATE = "\n  "
_UNUSUAL = re.compile(r"[^\n -~]")


class Guarded:
    """A text stream that escapes control characters and hides credentials in all text written to it.

    This is the last line of defense, for tracebacks, warnings of libraries and click's own messages, so it keeps line
    breaks. `echo` escapes line breaks as well.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        """Write `text` with control characters escaped and credentials hidden."""
        self.unguarded.write(without_secrets(printable(text, keep="\n\t\r")))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write lines as `write` does."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


def guard_streams() -> None:
    """Guard stdout and stderr from now on; escape characters that a stream cannot encode too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Guarded):
            continue
        if stream is None:  # closed by the parent process
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # stays open until the process ends
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Guarded(stream))


def unguarded(stream: TextIO) -> TextIO:
    """Return the raw stream, for rich, which writes escape sequences on purpose; its texts must be escaped before."""
    return stream.unguarded if isinstance(stream, Guarded) else stream


def echo(line: str = "", err: bool = False) -> None:
    """Print one line to stdout or stderr; escape line breaks, which can only come from a name."""
    print(printable(line), file=sys.stderr if err else sys.stdout, flush=True)


def echo_error(message: str) -> None:
    """Print an error to stderr, with its candidates on separate lines, indented by two spaces."""
    print(_CANDIDATE.join(map(printable, message.split(_CANDIDATE))), file=sys.stderr, flush=True)


def print_document(text: str) -> None:
    """Print a text of several lines to stdout: unchanged into a file or a pipe, escaped on a terminal."""
    stream = cast(TextIO, sys.stdout)
    if stream.isatty():
        stream.write(printable(text, keep="\n\t"))
    else:
        unguarded(stream).write(text)


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print one JSON document to stdout, in ASCII if the encoding of the stream is not UTF-8.

    Characters that are not printable become JSON escapes, so a program reads exactly the content of the document,
    including lone surrogates from file names that are not UTF-8.
    """
    unicode = codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")
    text = json.dumps(document, indent=1, ensure_ascii=not unicode)
    unguarded(sys.stdout).write(_UNUSUAL.sub(_as_json, text) + "\n")


def _as_json(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]
