"""The part of the Hub's protocol that huggingface_hub's client speaks to push and pull a dataset repository.

Written against the client, not against the Hub: commits with files inline or through LFS, trees, infos of paths,
downloads by revision. Xet is not spoken, so the client falls back to LFS.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from support.servers import QuietHandler

LFS_FROM_BYTES = 1000
"""Larger files go through LFS, as binary ones do on the Hub."""


@dataclass
class Hub:
    """Repositories, each a list of commits, each a table of files."""

    token: str = "hf_" + "t" * 34
    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS objects that were uploaded, by SHA-256."""
    uploads: int = 0
    lock: Lock = field(default_factory=Lock)

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes] | None:
        """The files at a revision; None if there is none."""
        commits = self.commits.get(repository, [])
        if revision == "main":
            return commits[-1][1] if commits else None
        return next((files for sha, files in commits if sha == revision), None)

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{repository}{len(self.commits[repository])}".encode()).hexdigest()
        self.commits[repository].append((sha, files))
        return sha


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubHandler(QuietHandler):
    hub: Hub

    def get(self) -> None:
        self.route(b"")

    def put(self) -> None:
        self.route(self.body())

    def post(self) -> None:
        self.route(self.body())

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, data: Any = b"", headers: dict[str, str] | None = None) -> None:
        if isinstance(data, bytes):
            self.reply(status, data, headers)
        else:
            self.reply(
                status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})}
            )

    def missing(self, code: str) -> None:
        self.answer(404, {"error": code}, {"X-Error-Code": code})

    def route(self, body: bytes) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}" and not path.startswith("/lfs/"):
            self.answer(401, {"error": "no token"}, {"X-Error-Code": "RepoNotFound"})
            return
        for pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                with self.hub.lock:
                    action(self, body, parse_qs(url.query), **match.groupdict())
                return
        self.answer(404, {"error": f"{self.command} {path} is not spoken here"})

    def create(self, body: bytes, query: dict[str, list[str]]) -> None:
        document = json.loads(body)
        name = (
            f"{document['organization']}/{document['name']}"
            if document.get("organization")
            else document["name"]
        )
        exists = name in self.hub.commits
        if not exists:
            self.hub.commits[name] = []
            self.hub.commit(name, {".gitattributes": b""})
        url = f"http://{self.headers['Host']}/datasets/{name}"
        self.answer(409 if exists else 200, {"url": url, "name": name, "id": name})

    def info(self, body: bytes, query: dict[str, list[str]], repo: str, rev: str = "main") -> None:
        if repo not in self.hub.commits:
            return self.missing("RepoNotFound")
        shas = [sha for sha, _ in self.hub.commits[repo]]
        if rev != "main" and rev not in shas:
            return self.missing("RevisionNotFound")
        return self.answer(
            200, {"id": repo, "sha": shas[-1] if rev == "main" else rev, "tags": [], "siblings": []}
        )

    def preupload(self, body: bytes, query: dict[str, list[str]], repo: str, rev: str) -> None:
        files = self.hub.files(repo) or {}
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LFS_FROM_BYTES else "regular",
                "shouldIgnore": False,
                "oid": _git_oid(files[file["path"]]) if file["path"] in files else None,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": answers})

    def batch(self, body: bytes, query: dict[str, list[str]], repo: str) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            there = item["oid"] in self.hub.objects
            href = f"http://{self.headers['Host']}/lfs/{item['oid']}"
            objects.append(
                {**item, **({} if there else {"actions": {"upload": {"href": href, "header": {}}}})}
            )
        self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, query: dict[str, list[str]], oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400, {"error": "wrong content"})
        self.hub.objects[oid] = body
        self.hub.uploads += 1
        return self.answer(200)

    def validate(self, body: bytes, query: dict[str, list[str]]) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def commit(self, body: bytes, query: dict[str, list[str]], repo: str, rev: str) -> None:
        files = dict(self.hub.files(repo) or {})
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.commit(repo, files)
        url = f"http://{self.headers['Host']}/datasets/{repo}/commit/{sha}"
        self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def describe(self, path: str, data: bytes) -> dict[str, Any]:
        document: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
        if len(data) >= LFS_FROM_BYTES:
            document["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return document

    def tree(self, body: bytes, query: dict[str, list[str]], repo: str, rev: str, path: str = "") -> None:
        files = self.hub.files(repo, rev)
        if files is None:
            return self.missing("RepoNotFound" if repo not in self.hub.commits else "RevisionNotFound")
        found = {name: data for name, data in files.items() if name.startswith(f"{path}/")}
        return (
            self.answer(200, [self.describe(*f) for f in found.items()])
            if found
            else self.missing("EntryNotFound")
        )

    def paths(self, body: bytes, query: dict[str, list[str]], repo: str, rev: str) -> None:
        files = self.hub.files(repo, rev) or {}
        form = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
        self.answer(200, [self.describe(path, files[path]) for path in form["paths"] if path in files])

    def resolve(self, body: bytes, query: dict[str, list[str]], repo: str, rev: str, path: str) -> None:
        files = self.hub.files(repo, rev)
        if files is None or path not in files:
            return self.missing("EntryNotFound")
        sha = rev if rev != "main" else self.hub.commits[repo][-1][0]
        etag = hashlib.sha256(files[path]).hexdigest()
        return self.answer(200, files[path], {"ETag": f'"{etag}"', "X-Repo-Commit": sha})


_REPO, _REV = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<rev>[\w.-]+)"
ROUTES = [
    (r"/api/repos/create", HubHandler.create),
    (r"/api/validate-yaml", HubHandler.validate),
    (rf"/api/datasets/{_REPO}", HubHandler.info),
    (rf"/api/datasets/{_REPO}/revision/{_REV}", HubHandler.info),
    (rf"/api/datasets/{_REPO}/preupload/{_REV}", HubHandler.preupload),
    (rf"/api/datasets/{_REPO}/commit/{_REV}", HubHandler.commit),
    (rf"/api/datasets/{_REPO}/tree/{_REV}(?:/(?P<path>.*))?", HubHandler.tree),
    (rf"/api/datasets/{_REPO}/paths-info/{_REV}", HubHandler.paths),
    (rf"/datasets/{_REPO}\.git/info/lfs/objects/batch", HubHandler.batch),
    (r"/lfs/(?P<oid>[0-9a-f]{64})", HubHandler.upload),
    (rf"/datasets/{_REPO}/resolve/{_REV}/(?P<path>.*)", HubHandler.resolve),
]
