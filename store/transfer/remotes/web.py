"""A web server as a remote, to read only: any server over a folder that somebody pushed to."""

import html
import netrc
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from urllib.parse import quote, unquote, urljoin, urlsplit

from featcache.store.address import Address
from featcache.store.errors import MissingError, RemoteError, RequestError
from featcache.store.network.http_client import HttpClient, read_from
from featcache.store.network.timeouts import ListingGuard
from featcache.store.redaction import remember_login
from featcache.store.transfer.remotes.base import Counter, Remote, RemoteFile, Upload

MAX_LISTING_BYTES = 16 * 2**20
_READ_ONLY = "a web server is for reading; push to the folder, or to the store, that it serves"
# The value of an href, with or without quotes. HTML parsers can take gigabytes of memory for a hostile page.
_LINK = re.compile(
    r"""<a\s[^<>]{0,1000}?href\s*=\s*(?:"([^"<>]{1,4096})"|'([^'<>]{1,4096})'|([^\s"'<>]{1,4096}))""",
    re.IGNORECASE,
)


class WebRemote(Remote):
    """A folder of a web server. A login comes from the address or from ``~/.netrc``, and goes to that host alone."""

    writable = False

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._client = HttpClient(login=_login(address), refused="logins belong into ~/.netrc")

    def _url(self, path: str) -> str:
        parts = [*self.address.parts, *path.split("/")]
        return f"{self.address.scheme}://{self.address.host_or_bucket}/" + "/".join(
            quote(part) for part in parts
        )

    def stat(self, path: str) -> RemoteFile:
        response = self._client.request("HEAD", self._url(path), self.where(path))
        response.close()
        length = -1 if response.length is None else response.length
        return RemoteFile(length, response.etag, _time(response.headers.get("Last-Modified")))

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        yield from read_from(self._client, self._url(path), self.where(path), offset)

    def files(self, folder: str) -> dict[str, RemoteFile]:
        """Return the files in one folder, read from the links of the index page that servers make of it."""
        where, body = self.where(folder), bytearray()
        guard = ListingGuard(where)
        try:
            with closing(self.read(f"{folder}/", 0, MAX_LISTING_BYTES)) as pieces:
                for piece in pieces:
                    guard.count(0)
                    body += piece
                    if len(body) > MAX_LISTING_BYTES:
                        raise RemoteError(f"{where}: the index page is longer than {MAX_LISTING_BYTES} bytes")
        except MissingError:
            raise RemoteError(
                f"{where}: the server shows no index of this folder; switch that on (nginx: autoindex), "
                "or name the cache in full"
            ) from None
        return {
            name: RemoteFile(-1) for name in _names(body.decode(errors="replace"), self._url(f"{folder}/"))
        }

    def put(self, upload: Upload, count: Counter) -> None:
        raise RequestError(f"{self.where()}: {_READ_ONLY}")

    def put_bytes(self, path: str, data: bytes) -> None:
        raise RequestError(f"{self.where()}: {_READ_ONLY}")

    def delete(self, paths: Sequence[str]) -> None:
        raise RequestError(f"{self.where()}: {_READ_ONLY}")

    def close(self) -> None:
        self._client.close()


def _names(page: str, address: str) -> Iterator[str]:
    """Return the names of the linked files of a page that lie in the folder at `address` itself."""
    base = urlsplit(address)
    for match in _LINK.finditer(page):
        link = html.unescape(match[1] or match[2] or match[3])
        with suppress(ValueError):  # an invalid address does not lie in the folder
            target = urlsplit(urljoin(address, link))
            name = unquote(target.path.removeprefix(base.path))
            if (
                target.netloc == base.netloc
                and target.path.startswith(base.path)
                and name
                and "/" not in name
            ):
                yield name


def _login(address: Address) -> tuple[str, str] | None:
    if address.login:
        user, _, password = address.login.partition(":")
        return unquote(user), unquote(password)
    with suppress(OSError, netrc.NetrcParseError):
        known = netrc.netrc().authenticators(address.host_or_bucket.partition(":")[0])
        if known:
            remember_login(f"{known[0]}:{known[2] or ''}")
            return known[0], known[2] or ""
    return None


def _time(text: str | None) -> float | None:
    with suppress(TypeError, ValueError, OverflowError):
        return parsedate_to_datetime(text or "").timestamp()
    return None
