"""The part of the Hub's protocol for datasets that listing, searching and downloading need, on the loopback."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from support.servers import QuietHandler, http_server

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repositories:
    """What the server has, and what it was asked."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Content of the files by repository and name."""
    swapped: dict[str, bytes] = field(default_factory=dict)
    """Bytes sent in place of the listed ones, by name: a fault of the network or the disk."""
    broken_off: dict[str, int] = field(default_factory=dict)
    """Number of bytes after which the first answer ends, by name."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of every request."""

    def add(self, repository: str, folder: Path) -> None:
        """Take the files of a folder over."""
        self.files[repository] = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def downloads(self) -> list[str]:
        """Names of the files that were sent."""
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for method, path, _ in self.asked
            if method == "GET" and "/resolve/" in path
        ]


class _Handler(QuietHandler):
    hub: Repositories

    def get(self) -> None:
        parts = urlsplit(self.path)
        self.hub.asked.append((self.command, parts.path, self.headers.get("Range", "")))
        if parts.path == "/api/datasets":
            search = parse_qs(parts.query).get("search", [""])[0]
            self._json([{"id": name, "_id": "0"} for name in self.hub.files if search in name])
        elif parts.path.startswith("/api/datasets/"):
            repository, _, revision = parts.path.removeprefix("/api/datasets/").partition("/revision/")
            self._list(repository, revision)
        elif "/resolve/" in parts.path:
            repository, _, rest = parts.path.removeprefix("/datasets/").partition("/resolve/")
            self._send_file(repository, rest.partition("/")[2])
        else:
            self.reply(200)

    def _list(self, repository: str, revision: str) -> None:
        files = self.hub.files.get(repository)
        if files is None:
            self.reply(404, headers={"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", "main", COMMIT):
            self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [
                {"rfilename": name, "size": len(data), **_digests(name, data)} for name, data in files.items()
            ]
            self._json({"id": repository, "_id": "0", "sha": COMMIT, "siblings": siblings})

    def _send_file(self, repository: str, name: str) -> None:
        data = self.hub.files.get(repository, {}).get(name)
        if data is None:
            self.reply(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        digest = _digests(name, data)
        etag = digest["lfs"]["sha256"] if "lfs" in digest else digest["blobId"]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        data = self.hub.swapped.get(name, data)
        byte_range = self.headers.get("Range", "")
        if not byte_range:
            sent = self.hub.broken_off.pop(name, None) if self.command == "GET" else None
            self.reply(200, data, headers, sent)
            return
        start = int(byte_range.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.reply(206, data[start:], headers)

    def _json(self, document: object) -> None:
        self.reply(200, json.dumps(document).encode(), {"Content-Type": "application/json"})


def _digests(name: str, data: bytes) -> dict:
    """Large files are kept apart from git, by SHA-256; small ones have git's SHA-1."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if not name.endswith((".tar", ".parquet")):
        return {"blobId": blob}
    return {
        "blobId": blob,
        "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134},
    }


@contextmanager
def hub_server(hub: Repositories) -> Iterator[str]:
    """Serve `hub`; gives the address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http_server(handler) as port:
        yield f"http://127.0.0.1:{port}"
