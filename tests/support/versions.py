"""A web server of one file that changes, breaks off, and lies about ranges as a test wants it."""

import hashlib
import time
from dataclasses import dataclass, field

from support.servers import QuietHandler


@dataclass
class Versions:
    """The file as it is just now, and how it is served."""

    data: bytes
    cut: int | None = None
    """Bytes of a whole body after which the connection ends; of a part then nothing comes."""
    knows_if_range: bool = True
    lie_about_range: bool = False
    """Send other bytes than were asked for."""
    pause_s: float = 0.0
    headers: dict[str, str | None] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)

    @property
    def tag(self) -> str:
        """The ETag of the version that is served."""
        return f'"{hashlib.sha256(self.data).hexdigest()[:8]}"'


class VersionsHandler(QuietHandler):
    site: Versions

    def get(self) -> None:
        site, data = self.site, self.site.data
        site.asked.append(dict(self.headers))
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"ETag": site.tag, **site.headers}
        current = headers["ETag"] or headers.get("Last-Modified")
        if site.knows_if_range and self.headers.get("If-Range") not in (None, current):
            start = 0
        if start >= len(data) > 0 and start:
            self.reply(416)
            return
        first = start // 2 if site.lie_about_range else start
        body = data[first:]
        headers = {"Content-Length": str(len(body)), **headers}
        if start:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.head(206 if start else 200, headers)
        sent = body if site.cut is None else body[: 0 if start else site.cut]
        for at in range(0, len(sent), 50_000):
            piece = sent[at : at + 50_000]
            chunked = headers.get("Transfer-Encoding") == "chunked"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            time.sleep(site.pause_s)
        if headers.get("Transfer-Encoding") == "chunked":
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = len(sent) < len(body)
