"""A web server over a pushed cache that does to some of its files whatever a test thinks of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from support.servers import QuietHandler

Act = Callable[["HostileHandler", bytes], None]


@dataclass
class Site:
    """What the server has, what it does instead, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    acts: dict[str, Act] = field(default_factory=dict)
    """Actions that replace an honest answer, by path."""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def times(self, path: str, method: str = "GET") -> int:
        """Return the number of requests for a path."""
        return sum(asked[:2] == (method, path) for asked in self.asked)


class HostileHandler(QuietHandler):
    site: Site

    def get(self) -> None:
        path = unquote(self.path).lstrip("/")
        self.site.asked.append((self.command, path, dict(self.headers)))
        data = self.site.files.get(path)
        act = self.site.acts.get(path)
        if act is not None:
            act(self, data or b"")
        elif data is None:
            self.plain(b"", 404)
        else:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.plain(data[start:], 206 if start else 200)

    def plain(self, data: bytes, status: int = 200, **headers: str) -> None:
        """Answer with some bytes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.reply(status, data, {"ETag": f'"{hash(data)}"', **named})

    def endless(self, head: bytes = b"") -> None:
        """Answer with a body that does not end, as long as anybody listens."""
        self.head(200, {"Transfer-Encoding": "chunked"})
        if self.command == "HEAD":
            return
        piece = head or b" " * 2**16
        try:
            while True:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                piece = b" " * 2**16
        except OSError:
            self.close_connection = True
