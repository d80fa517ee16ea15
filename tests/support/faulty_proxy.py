"""An HTTP proxy before an object store that drops, delays, truncates and corrupts, as its random numbers have it."""

import http.client
import random
import time
from dataclasses import dataclass, field
from threading import Lock

from support.servers import QuietHandler

FAULTS = ("drop", "late", "truncate", "corrupt", "refuse")


@dataclass
class Faults:
    """What the proxy does to requests."""

    port: int
    """Port of the server behind the proxy."""
    rate: float = 0.0
    """Share of requests that something happens to."""
    rng: random.Random = field(default_factory=random.Random)
    done: dict[str, int] = field(default_factory=dict)
    """Number of times that each fault happened."""
    lock: Lock = field(default_factory=Lock)
    bytes_out: int = 0
    """Bytes of bodies that the server sent."""
    requests: list[str] = field(default_factory=list)
    late_s: float = 0.05

    def draw(self) -> str | None:
        with self.lock:
            if self.rng.random() >= self.rate:
                return None
            fault = self.rng.choice(FAULTS)
            self.done[fault] = self.done.get(fault, 0) + 1
            return fault

    def damaged(self, data: bytes) -> bytes:
        with self.lock:
            place = self.rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    def length(self, size: int) -> int:
        with self.lock:
            return self.rng.randrange(size)


class FaultyProxy(QuietHandler):
    faults: Faults

    def forward(self) -> None:
        faults = self.faults
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = faults.draw()
        # What a store says about itself is signed or checked by TLS in life; here only contents are damaged.
        is_object = "?" not in self.path and self.command in ("GET", "PUT")
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "late":
            time.sleep(faults.late_s)
        if fault == "refuse":
            self.send(503, {}, b"", 0)
            return
        if fault == "corrupt" and is_object and self.command == "PUT" and body:
            body = faults.damaged(body)
        upstream = http.client.HTTPConnection("127.0.0.1", faults.port, timeout=30)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers))
            response = upstream.getresponse()
            data = response.read()
        finally:
            upstream.close()
        with faults.lock:
            faults.bytes_out += len(data)
            faults.requests.append(f"{self.command} {self.path}")
        if fault == "corrupt" and is_object and response.status < 300 and data:
            data = faults.damaged(data)
        sent = faults.length(len(data)) if fault == "truncate" and data else len(data)
        headers = {
            n: v for n, v in response.getheaders() if n.lower() not in ("transfer-encoding", "connection")
        }
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(data))
        self.send(response.status, headers, data, sent)

    def send(self, status: int, headers: dict[str, str], data: bytes, sent: int) -> None:
        own = ("server", "date")  # BaseHTTPRequestHandler sends these
        self.head(
            status, {n: v for n, v in (headers or {"Content-Length": "0"}).items() if n.lower() not in own}
        )
        self.wfile.write(data[:sent])
        self.close_connection = sent < len(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815
