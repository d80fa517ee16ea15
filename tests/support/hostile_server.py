"""A web server over a pushed cache that does to some of its files whatever a test thinks of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

Act = Callable[["HostileHandler", bytes], None]


@dataclass
class Site:
    """What the server has, what it does instead, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    acts: dict[str, Act] = field(default_factory=dict)
    """By path: what happens instead of an honest answer."""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def times(self, path: str, method: str = "GET") -> int:
        """How often a path was asked for."""
        return sum(asked[:2] == (method, path) for asked in self.asked)


class HostileHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *arguments: object) -> None:
        """Be quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
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
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "ETag": f'"{hash(data)}"', **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def endless(self, head: bytes = b"") -> None:
        """Answer with a body that does not end, as long as anybody listens."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command == "HEAD":
            return
        piece = head or b" " * 2**16
        try:
            while True:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                piece = b" " * 2**16
        except OSError:
            self.close_connection = True
