"""Each failure of a remote is one line that names the file and what to do, and ends neither a teammate's run nor a copy."""

from pathlib import Path

import pytest

from featcache.store.errors import RemoteError
from featcache.store.files import with_filename
from support.faulty_proxy import Faults, FaultyProxy
from support.hostile_server import HostileHandler, Site
from support.hub_server import HubHandler
from support.servers import http_server

CHUNK = "features.zarr/train/norm2/c.1.2.0.0"
STATUSES = {
    404: "although the manifest names it; whoever pushed the cache can repair it",
    403: "refused",
    500: "500",
    503: "503",
}


def test_an_error_that_speaks_for_itself_is_not_renamed(tmp_path):
    """A RemoteError is an OSError without a number; under another name nothing of it would be left."""
    with pytest.raises(RemoteError, match=r"^refused$"), with_filename(tmp_path / "file"):
        raise RemoteError("refused")


def pull_fails(cli, address: str, root: Path, *needles: str) -> None:
    """Pull a cache; the one line of the error has all of `needles`, and nothing of it counts."""
    outcome = cli("pull", address, "--root", root)
    assert outcome.status == 1, outcome
    lines = [
        line for line in outcome.err.splitlines() if not line.startswith("pulling: ")
    ]  # on a busy machine
    assert len(lines) == 1, outcome.err
    for needle in (CHUNK, *needles):
        assert needle in lines[0]
    assert "Errno" not in lines[0]
    assert not list(root.glob("*/*/manifest.json"))


@pytest.mark.parametrize("status", STATUSES)
def test_web(cli, made_once, pushed_once, tmp_path, status):
    files = {
        str(path.relative_to(pushed_once)): path.read_bytes()
        for path in pushed_once.rglob("*")
        if path.is_file()
    }
    site = Site(files, {f"{made_once.name}/{CHUNK}": lambda handler, data: handler.plain(b"", status)})
    with http_server(type("Handler", (HostileHandler,), {"site": site})) as port:
        pull_fails(cli, f"http://127.0.0.1:{port}/{made_once.name}", tmp_path / "other", STATUSES[status])


@pytest.mark.parametrize("status", STATUSES)
def test_s3(cli, made, s3, s3_endpoint, tmp_path, status, monkeypatch):
    assert cli("push", made.directory, s3).status == 0

    class Refusing(FaultyProxy):
        faults = Faults(int(s3_endpoint.rpartition(":")[2]))

        def do_GET(self) -> None:  # noqa: N802
            if CHUNK in self.path:
                self.send(status, {}, b"", 0)
            else:
                self.forward()

    with http_server(Refusing) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        pull_fails(cli, f"{s3}/{made.name}", tmp_path / "other", STATUSES[status])


@pytest.mark.parametrize("status", STATUSES)
def test_hub(cli, made, hub_address, hub, tmp_path, status, monkeypatch):
    assert cli("push", made.directory, hub_address).status == 0
    resolve = HubHandler.resolve

    def refusing(self, body, query, repo, rev, path):
        if CHUNK in path:
            self.answer(status, b"", {"X-Error-Code": "EntryNotFound"} if status == 404 else {})
        else:
            resolve(self, body, query, repo, rev, path)

    from support import hub_server

    routes = [(pattern, refusing if action is resolve else action) for pattern, action in hub_server.ROUTES]
    monkeypatch.setattr(hub_server, "ROUTES", routes)
    expected = "no right to it" if status == 403 else STATUSES[status]
    pull_fails(cli, f"{hub_address}/{made.name}", tmp_path / "other", expected)


@pytest.mark.parametrize("kind", ["ssh", "folder"])
def test_a_file_that_is_gone(cli, made, request, kind, tmp_path):
    address = request.getfixturevalue(kind)
    assert cli("push", made.directory, address).status == 0
    place = tmp_path / ("far" if kind == "ssh" else "share")
    (place / made.name / CHUNK).unlink()
    pull_fails(cli, f"{address}/{made.name}", tmp_path / "other", STATUSES[404])
