"""Nothing that a remote does takes all time or all memory, and a fault of ours is not taken for one of the network."""

import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from featcache.store.address import parse_address
from featcache.store.errors import RemoteError
from featcache.store.network import timeouts
from featcache.store.transfer.remotes import open_remote
from support import hub_server
from support.hostile_server import HostileHandler, Site
from support.hub_server import HubHandler
from support.no_backoff import short_timeouts
from support.servers import QuietHandler, http_server

NAME = "made/tiny-0123456789ab"


@pytest.fixture
def hasty(monkeypatch):
    short_timeouts(monkeypatch.setattr)


@pytest.fixture
def silent():
    """A server that takes connections, and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "command", [("ls", ""), ("pull", f"/{NAME}"), ("info", f"/{NAME}"), ("probe", f"/{NAME}")]
)
@pytest.mark.parametrize("kind", ["http", "s3", "ssh", "hf"])
def test_a_silent_server_is_given_up(cli, silent, hasty, request, monkeypatch, kind, command):
    if kind == "s3":
        address = request.getfixturevalue("s3")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{silent}")
    elif kind == "hf":
        from huggingface_hub import constants

        address = request.getfixturevalue("hub_address")
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{silent}")
    else:
        address = f"{kind}://{silent}/x"
    verb, path = command
    started = time.monotonic()
    arguments = ("--head", "linear", "--cache") if verb == "probe" else ()
    outcome = cli(verb, *arguments, f"{address}{path}")
    assert time.monotonic() - started < 8  # on a busy machine; half a minute with the real values
    assert outcome.status == 1, outcome
    assert len(outcome.err.splitlines()) == 1
    assert re.search("no answer within [01] s", outcome.err)
    assert "run the same command again when the remote answers" in outcome.err


def drip_bytes(file) -> None:
    """Send a byte now and then, until the client has enough of it."""
    with suppress(OSError):
        for _ in range(200):
            file.write(b"y")
            file.flush()
            time.sleep(0.05)


def drip(handler, data: bytes, *, headers: bool) -> None:
    """A byte now and then, of the headers or of the body."""
    if headers:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    elif handler.command == "HEAD":
        handler.plain(data)
        return
    else:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
    drip_bytes(handler.wfile)
    handler.close_connection = True


@pytest.mark.parametrize("headers", [True, False])
def test_a_byte_now_and_then_is_silence(cli, made_once, site, hasty, headers, tmp_path):
    site.acts[f"{made_once.name}/manifest.json"] = lambda handler, data: drip(handler, data, headers=headers)
    started = time.monotonic()
    outcome = cli("pull", site.address, "--root", tmp_path / "other")
    assert time.monotonic() - started < 8
    assert outcome.status == 1
    assert ("no answer within" if headers else "too little arrived in") in outcome.err


def test_bodies_of_redirects_are_not_read(cli, made_once, site, tmp_path):
    """However long they are, and whatever they unpack to."""

    def endless(handler, data: bytes) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"/{made_once.name}/nowhere")
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while handler.command != "HEAD":
                handler.wfile.write(b"10000\r\n%s\r\n" % bytes(2**16))
        except OSError:
            pass
        handler.close_connection = True

    site.acts[f"{made_once.name}/manifest.json"] = endless
    outcome = cli("pull", site.address, "--root", tmp_path / "other")
    assert outcome.status == 2
    assert "there is no cache" in outcome.err


@pytest.mark.parametrize(
    "location", ["http://[::1/x", "/\xe9\xff", "file:///etc/passwd", "http://127.0.0.1:abc/x"]
)
def test_redirects_to_nowhere(cli, made_once, site, tmp_path, location):
    site.acts[f"{made_once.name}/manifest.json"] = lambda handler, data: handler.plain(
        b"", 302, Location=location
    )
    outcome = cli("pull", site.address, "--root", tmp_path / "other")
    assert outcome.status == 1
    assert "the server redirects to" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_headers_that_are_too_much(cli, made_once, site, tmp_path):
    """Cookies do not add up, and a length of 5000 digits is none."""
    for path, data in list(site.files.items()):
        site.acts[path] = lambda handler, data: handler.plain(
            data,
            Set_Cookie="a" * 60_000,
            **({"Content-Length": "9" * 5000} if handler.command == "HEAD" else {}),
        )
    assert cli("pull", site.address, "--root", tmp_path / "other").status == 0


@pytest.mark.parametrize(
    "page", [b"<a " * (5 << 20), b"<a href='" + b"x" * (15 << 20), b'<a href="&#x110000;">' * 10**5]
)
def test_index_pages_that_are_no_index(cli, site, made_once, page):
    site.files["_catalogue/"] = page
    outcome = cli("ls", site.address.removesuffix(f"/{made_once.name}"))
    assert outcome.status == 0
    assert "no caches" in outcome.out or "no cache" in outcome.out


def test_one_odd_link_of_an_index_does_not_matter(cli, site, made_once):
    entry = next(path for path in site.files if path.startswith("_catalogue/")).removeprefix("_catalogue/")
    odd = ("http://[::1/x", "//[", "javascript:alert(1)", "%ff%fe", "a" * 5000, "\x1b[2J")
    site.files["_catalogue/"] = "".join(f'<a href="{link}">x</a>' for link in (*odd, entry)).encode()
    outcome = cli("ls", site.address.removesuffix(f"/{made_once.name}"))
    assert made_once.plan.spec.key in outcome.out


class Pages(QuietHandler):
    """An object store whose listing has one more page, always."""

    keys = 1000
    page = 0

    def get(self) -> None:
        type(self).page += 1
        first = self.page * self.keys
        item = "<Contents><Key>team/_catalogue/{}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
        item += "<ETag>x</ETag><Size>0</Size></Contents>"
        found = "".join(item.format(f"k{number:012}") for number in range(first, first + self.keys))
        body = (
            '<?xml version="1.0"?><ListBucketResult><IsTruncated>true</IsTruncated>'
            f"<NextContinuationToken>{self.page}</NextContinuationToken>{found}</ListBucketResult>"
        ).encode()
        self.reply(200, body)


@pytest.mark.parametrize(
    ("keys", "message"),
    [(1000, "the listing has more than 5,000 files"), (0, "the listing did not end within")],
)
def test_a_listing_of_s3_that_does_not_end(cli, s3, monkeypatch, keys, message):
    monkeypatch.setattr(timeouts, "MAX_LISTED", 5000)
    monkeypatch.setattr(timeouts, "LISTING_S", 2.0 if keys else 0.5)
    with http_server(type("Handler", (Pages,), {"keys": keys})) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        outcome = cli("ls", s3)
    assert outcome.status == 1
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize("kind", ["folder", "ssh"])
def test_listings_of_folders_are_bounded_and_odd_names_do_not_matter(
    cli, made, request, tmp_path, monkeypatch, kind
):
    address = request.getfixturevalue(kind)
    assert cli("push", made.directory, address).status == 0
    catalogue = tmp_path / ("far" if kind == "ssh" else "share") / "_catalogue"
    for name in (b"\xff\xfe", b"a\nb", b"@@@", "ü@ü".encode()):
        (catalogue / name.decode(errors="surrogateescape")).write_bytes(b"")
    listed = cli("ls", address)
    assert listed.status == 0, listed.err
    assert made.plan.spec.key in listed.out
    monkeypatch.setattr(timeouts, "MAX_LISTED", 3)
    outcome = cli("ls", address)
    assert outcome.status == 1
    assert "the listing has more than 3 files" in outcome.err


def test_a_file_of_the_hub_that_does_not_end(cli, made, hub_address, monkeypatch, tmp_path):
    """The client would fetch all of it before it gave anything."""
    assert cli("push", made.directory, hub_address).status == 0
    resolve, sent = HubHandler.resolve, []

    def endless(self, body, query, repo, rev, path):
        if not path.endswith("c.1.2.0.0"):
            resolve(self, body, query, repo, rev, path)
            return
        self.send_response(200)
        self.end_headers()
        try:
            while sum(sent) < 2**30:
                sent.append(self.wfile.write(bytes(2**16)))
        except OSError:
            pass
        self.close_connection = True

    routes = [(pattern, endless if action is resolve else action) for pattern, action in hub_server.ROUTES]
    monkeypatch.setattr(hub_server, "ROUTES", routes)
    outcome = cli("pull", f"{hub_address}/{made.name}", "--root", tmp_path / "other")
    assert outcome.status == 1
    assert "more bytes arrive than the manifest says, twice" in outcome.err
    assert sum(sent) < 2**27  # of what the sockets hold


def test_the_token_of_the_hub_stays_with_the_hub(cli, made, hub_address, hub, monkeypatch, tmp_path):
    """Its answers redirect to stores with signatures of their own."""
    assert cli("push", made.directory, hub_address).status == 0
    resolve, elsewhere = HubHandler.resolve, Site()
    with http_server(type("Elsewhere", (HostileHandler,), {"site": elsewhere})) as port:

        def redirecting(self, body, query, repo, rev, path):
            files = hub.files(repo, rev)
            if path not in files:
                return resolve(self, body, query, repo, rev, path)
            elsewhere.files[path] = files[path]
            return self.answer(302, b"", {"Location": f"http://localhost:{port}/{path}"})

        routes = [
            (pattern, redirecting if action is resolve else action) for pattern, action in hub_server.ROUTES
        ]
        monkeypatch.setattr(hub_server, "ROUTES", routes)
        outcome = cli("pull", f"{hub_address}/{made.name}", "--root", tmp_path / "other")
        assert outcome.status == 0, outcome.err
    assert elsewhere.asked
    assert not any("Authorization" in headers for *_, headers in elsewhere.asked)


def _breaking(calls: list[str]) -> Callable[..., None]:
    def broken(*arguments: object, **options: object) -> None:
        calls.append("asked")
        raise TypeError("a bug of our own")

    return broken


@pytest.mark.parametrize("kind", ["s3", "ssh", "folder", "hub_address", "web"])
def test_a_bug_is_not_taken_for_the_network(request, monkeypatch, kind, site):
    """It surfaces as what it is, and is not tried six times."""
    address = site.address.rpartition("/made/")[0] if kind == "web" else request.getfixturevalue(kind)
    calls: list[str] = []
    with open_remote(parse_address(address)) as remote:
        place = {
            "s3": (getattr(remote, "_client", None), "head"),
            "ssh": (remote, "_client"),
            "folder": (remote, "_path"),
            "hub_address": (getattr(remote, "_api", None), "dataset_info"),
            "web": (getattr(getattr(remote, "_client", None), "_session", None), "request"),
        }[kind]
        monkeypatch.setattr(*place, _breaking(calls))
        with pytest.raises(TypeError, match="a bug of our own"):
            remote.stat("x")
        assert calls == ["asked"]


@pytest.mark.parametrize("kind", ["s3", "hub_address", "web"])
def test_errors_keep_their_cause(request, monkeypatch, kind, site, silent):
    address = "http://127.0.0.1:9/x" if kind == "web" else request.getfixturevalue(kind)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with open_remote(parse_address(address)) as remote:
        with pytest.raises(RemoteError) as caught:
            remote.stat("x")
        assert caught.value.__cause__ is not None


class Drips(QuietHandler):
    """An object store that sends a byte now and then."""

    def get(self) -> None:
        modified = "Wed, 21 Oct 2015 07:28:00 GMT"
        self.head(200, {"Content-Length": "100000", "ETag": '"x"', "Last-Modified": modified})
        drip_bytes(self.wfile)


def test_a_store_that_drips_is_silent(s3, hasty, monkeypatch):
    with http_server(type("Handler", (Drips,), {})) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with (
            open_remote(parse_address(s3)) as remote,
            pytest.raises(RemoteError, match="too little arrived in"),
        ):
            for _ in remote.read("x", 0, 100_000):
                pass
