"""A web server as a remote, to read only: any server over a folder that somebody pushed to."""

import netrc
from collections.abc import Generator, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from featcache.store.errors import RemoteError, RequestError
from featcache.store.transfer.address import Address, redacted
from featcache.store.transfer.flight import TransientError
from featcache.store.transfer.remotes.base import (
    IN_FLIGHT,
    PIECE_BYTES,
    TIMEOUT_S,
    Counter,
    Listed,
    MissingError,
    Remote,
    Upload,
)

MAX_LISTING_BYTES = 16 * 2**20
MAX_REDIRECTS = 5
_READ_ONLY = "a web server is for reading; push to the folder, or to the store, that it serves"


class WebRemote(Remote):
    """A folder of a web server. A login comes from the address or from ``~/.netrc``, and goes to that host alone."""

    writable = False

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        from requests.adapters import HTTPAdapter

        import requests

        self._requests = requests
        self._session = requests.Session()
        self._session.mount("http://", HTTPAdapter(pool_maxsize=2 * IN_FLIGHT))
        self._session.mount("https://", HTTPAdapter(pool_maxsize=2 * IN_FLIGHT))
        self._session.auth = _login(address)
        # Compressed, a body could be of any size when it is unpacked.
        self._session.headers["Accept-Encoding"] = "identity"

    def _url(self, path: str) -> str:
        parts = [*self.address.parts, *path.split("/")]
        return f"{self.address.scheme}://{self.address.place}/" + "/".join(quote(part) for part in parts)

    def stat(self, path: str) -> Listed:
        response = self._ask("HEAD", path)
        response.close()
        headers = response.headers
        version = headers.get("ETag") or headers.get("Last-Modified") or ""
        size = headers.get("Content-Length", "")
        return Listed(int(size) if size.isdecimal() else -1, version, _time(headers.get("Last-Modified")))

    def read(self, path: str, offset: int = 0) -> Generator[bytes, None, None]:
        response = self._ask("GET", path, {"Range": f"bytes={offset}-"} if offset else {})
        skip = (
            offset if response.status_code == 200 else 0
        )  # a server that does not know ranges sends everything
        try:
            for piece in response.iter_content(PIECE_BYTES):
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                yield piece[skip:]
                skip = 0
        except (self._requests.RequestException, OSError) as error:
            raise TransientError(f"{self.where(path)}: {_describe(error)}") from None
        finally:
            response.close()

    def files(self, folder: str) -> dict[str, Listed]:
        """The files in one folder, read from the links of the index page that servers make of it."""
        body = b""
        try:
            for piece in self.read(f"{folder}/"):
                body += piece
                if len(body) > MAX_LISTING_BYTES:
                    raise RemoteError(
                        f"{self.where(folder)}: the index page is longer than {MAX_LISTING_BYTES} bytes"
                    )
        except MissingError:
            raise RemoteError(
                f"{self.where(folder)}: the server shows no index of this folder; switch that on (nginx: autoindex), "
                "or name the cache in full"
            ) from None
        base = urlsplit(self._url(f"{folder}/"))
        names = {}
        for link in _links(body.decode(errors="replace")):
            target = urlsplit(urljoin(base.geturl(), link))
            name = unquote(target.path.removeprefix(base.path))
            if (
                target.netloc == base.netloc
                and target.path.startswith(base.path)
                and name
                and "/" not in name
            ):
                names[name] = Listed(-1)
        return names

    def _ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> Any:
        """Send one request; a redirect is followed only on the very same host, where a login may go."""
        url = self._url(path)
        for _ in range(MAX_REDIRECTS):
            try:
                response = self._session.request(
                    method, url, headers=headers, stream=True, allow_redirects=False, timeout=TIMEOUT_S
                )
            except (self._requests.RequestException, OSError) as error:
                raise TransientError(f"{self.where(path)}: {_describe(error)}") from None
            target = response.headers.get("Location") if response.is_redirect else None
            if target is None:
                return self._accepted(response, path)
            response.close()
            target = urljoin(url, target)
            if urlsplit(target)[:2] != urlsplit(url)[:2]:
                raise RemoteError(
                    f"{self.where(path)}: the server redirects to another host ({redacted(urlsplit(target).netloc)}), "
                    "which is not followed; give that address if you trust it"
                )
            url = target
        raise RemoteError(f"{self.where(path)}: more than {MAX_REDIRECTS} redirects")

    def _accepted(self, response: Any, path: str) -> Any:
        status = response.status_code
        if status in (200, 206):
            return response
        response.close()
        where = self.where(path)
        if status in (404, 410):
            raise MissingError(f"{where}: not there")
        if status in (401, 403):
            raise RemoteError(f"{where}: refused (status {status}); logins belong into ~/.netrc")
        if status in (408, 425, 429) or status >= 500:
            raise TransientError(f"{where}: the server answers with status {status}")
        raise RemoteError(f"{where}: the server answers with status {status}")

    def put(self, upload: Upload, count: Counter) -> None:
        raise RequestError(f"{self.where()}: {_READ_ONLY}")

    def put_bytes(self, path: str, data: bytes) -> None:
        raise RequestError(f"{self.where()}: {_READ_ONLY}")

    def delete(self, paths: Sequence[str]) -> None:
        raise RequestError(f"{self.where()}: {_READ_ONLY}")

    def close(self) -> None:
        self._session.close()


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def _links(page: str) -> list[str]:
    parser = _Links()
    parser.feed(page)
    return parser.found


def _login(address: Address) -> tuple[str, str] | None:
    if address.login:
        user, _, password = address.login.partition(":")
        return unquote(user), unquote(password)
    with suppress(OSError, netrc.NetrcParseError):
        known = netrc.netrc().authenticators(address.place.partition(":")[0])
        if known:
            return known[0], known[2] or ""
    return None


def _time(text: str | None) -> float | None:
    with suppress(TypeError, ValueError):
        return parsedate_to_datetime(text or "").timestamp()
    return None


def _describe(error: Exception) -> str:
    """The innermost reason, without the addresses and objects that a client wraps it in."""
    inner: BaseException = error
    while inner.args and isinstance(inner.args[-1], BaseException):
        inner = inner.args[-1]
    reason = getattr(inner, "reason", None)
    if isinstance(reason, BaseException):
        inner = reason
    # "HTTPConnection(...): Failed to establish a new connection: [Errno 111] Connection refused"
    return redacted(str(inner).rpartition("connection: ")[2] or type(inner).__name__)[:200]
