"""The HTTP client for remotes and datasets.

A server may be slow, broken or hostile, so everything is bounded: connecting, headers, redirects, silence within a body,
and the unpacked size of a compressed body. Every failure becomes an error of this package; nothing else is caught.
"""

import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from http.client import HTTPException, IncompleteRead
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit

import urllib3
from requests.adapters import HTTPAdapter

import requests
from featcache.store.address import redacted
from featcache.store.errors import MissingError, RemoteError
from featcache.store.network.concurrency import CONCURRENT_FILES, PIECE_BYTES, TransientError, check_stop
from featcache.store.network.timeouts import CONNECT_S, SILENCE_S, run_with_timeout, watch_transfer

MAX_REDIRECTS = 5
MAX_TAG = 1024
"""Characters of an ETag that are kept, since the header may be 64 kB long."""
_REDIRECTS = (301, 302, 303, 307, 308)
_MISSING = (404, 410)
_REFUSED = (401, 403, 407)
_TRANSIENT = (408, 425, 429)
_PORTS = {"http": 80, "https": 443}

# Errors that the client and its libraries raise for faults of a server. ValueError is among them: headers that are not
# UTF-8, hosts that cannot be encoded. It is caught only around their calls, which cannot raise a ValueError of ours.
_CLIENT_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError)
_NEVER_PASSES = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidHeader,
    requests.exceptions.SSLError,
    requests.exceptions.InvalidProxyURL,
    UnicodeError,
)
"""The permanent ones among these errors; a failed TLS handshake is permanent too."""

Login = Any
"""Type of `auth` in requests: a user and a password, or a function of the request."""


class HttpClient:
    """Sends requests to web servers; safe to use from several threads.

    Args:
        login: login for the requested host; it is never sent to another host.
        anywhere: follow redirects to other hosts, as downloads need. Otherwise such redirects are refused.
        refused: suggestion for the error when a server denies access (401, 403).
    """

    def __init__(self, *, login: Login = None, anywhere: bool = False, refused: str = "") -> None:
        self._login, self._anywhere, self._refused = login, anywhere, refused
        self._session = _Session()
        for scheme in _PORTS:
            self._session.mount(f"{scheme}://", HTTPAdapter(pool_maxsize=2 * CONCURRENT_FILES))
        # A compressed body could unpack to any size.
        self._session.headers["Accept-Encoding"] = "identity"
        # A cookie from every answer would make later requests longer than servers accept.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def request(
        self, method: str, url: str, where: str, headers: Mapping[str, str] | None = None
    ) -> "Response":
        """Send one request, and follow its redirects.

        Args:
            method: GET or HEAD.
            url: address, without a login.
            where: name of the file in errors, without credentials.
            headers: headers of this request.

        Raises:
            MissingError: the file does not exist.
            TransientError: there is no answer, or a temporary failure.
            RemoteError: the server refuses, redirects to a host that is not allowed, or does not speak HTTP.
        """
        first = url
        for _ in range(MAX_REDIRECTS):
            response = self._send(method, url, where, headers, _origin(url) == _origin(first))
            if response.status_code not in _REDIRECTS or "Location" not in response.headers:
                return self._accepted(Response(response, where))
            response.close()
            url = self._redirected(url, response.headers["Location"], where)
        raise RemoteError(f"{where}: more than {MAX_REDIRECTS} redirects")

    def _send(
        self, method: str, url: str, where: str, headers: Mapping[str, str] | None, at_home: bool
    ) -> requests.Response:
        def send() -> requests.Response:
            try:
                return self._session.request(
                    method,
                    url,
                    headers=headers,
                    auth=self._login if at_home else None,
                    stream=True,
                    allow_redirects=False,
                    timeout=(CONNECT_S, SILENCE_S),
                )
            except _CLIENT_ERRORS as error:
                raise _failure(error, where) from error

        # On a separate thread: the client bounds each wait for bytes, but neither slowly arriving headers nor the resolver.
        return run_with_timeout(send, SILENCE_S, where)

    def _redirected(self, url: str, target: str, where: str) -> str:
        try:
            joined = urljoin(url, target.encode("latin-1").decode())
            here, there = _origin(url), _origin(joined)
        except ValueError:
            raise RemoteError(f"{where}: the server redirects to something that is no address") from None
        if there == here or (self._anywhere and there[0] in (here[0], "https")):
            return joined
        name = redacted(f"{there[0]}://{urlsplit(joined).netloc}").partition("://")[2]
        if self._anywhere:
            raise RemoteError(
                f"{where}: the server redirects to {there[0]}://{name}, which is not followed; only encrypted addresses are"
            )
        raise RemoteError(
            f"{where}: the server redirects to another host ({name}), "
            "which is not followed; give that address if you trust it"
        )

    def _accepted(self, response: "Response") -> "Response":
        status, where = response.status, response.where
        if status in (200, 206, 416):
            return response
        response.close()
        if status in _MISSING:
            raise MissingError(f"{where}: not there (status {status})")
        if status in _REFUSED:
            raise RemoteError(
                f"{where}: refused (status {status}){'; ' + self._refused if self._refused else ''}"
            )
        if status in _TRANSIENT or 500 <= status < 600:
            raise TransientError(f"{where}: the server answers with status {status}")
        raise RemoteError(f"{where}: the server answers with status {status}")

    def close(self) -> None:
        """Close all connections."""
        self._session.close()


class Response:
    """The answer to a request, whose body has not been read yet: use `pieces`, or `close`."""

    def __init__(self, response: requests.Response, where: str) -> None:
        self._response, self.where = response, where
        self.status = response.status_code
        self.headers = response.headers

    @property
    def length(self) -> int | None:
        """Bytes of the body as sent; None if the server does not declare them."""
        return _number(self.headers.get("Content-Length", ""))

    @property
    def encoded(self) -> bool:
        """True if the body is compressed, although the request did not allow it."""
        return self.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")

    @property
    def content_range(self) -> tuple[int, int | None] | None:
        """Offset of the first byte, and size of the whole file, for a partial answer; None if not declared."""
        unit, _, rest = self.headers.get("Content-Range", "").strip().partition(" ")
        span, _, total = rest.partition("/")
        first = _number(span.partition("-")[0].strip())
        return None if unit.lower() != "bytes" or first is None else (first, _number(total.strip()))

    @property
    def etag(self) -> str:
        """A tag that changes with the file; empty if the server sends none."""
        return (self.headers.get("ETag") or self.headers.get("Last-Modified") or "")[:MAX_TAG]

    @property
    def strong_etag(self) -> str:
        """A tag that two versions of a file never share, for resumed downloads; empty if the server sends none."""
        etag = self.headers.get("ETag", "").strip()
        if etag:
            return etag if etag.startswith('"') and len(etag) <= MAX_TAG and etag.isascii() else ""
        modified = self.headers.get("Last-Modified", "").strip()
        return modified if len(modified) <= MAX_TAG and modified.isascii() else ""

    def pieces(self, *, unpack: bool) -> Generator[bytes, None, None]:
        """Yield the body in pieces; it is closed at the end, or with the generator.

        Args:
            unpack: undo gzip or deflate that was not requested, at most `PIECE_BYTES` at a time; the reader bounds the sum.

        Raises:
            TransientError: the body breaks off, or hardly moves.
            RemoteError: the body cannot be unpacked.
        """
        raw = self._raw_pieces()
        if not unpack or not self.encoded:
            yield from raw
            return
        encoding = self.headers.get("Content-Encoding", "").strip().lower()
        if "," in encoding:
            raw.close()
            self.close()
            raise RemoteError(
                f"{self.where}: the server packs its answer more than once ({redacted(encoding)[:40]})"
            )
        yield from _unpacked(raw, encoding, self.where)

    def _raw_pieces(self) -> Generator[bytes, None, None]:
        raw, received = self._response.raw, 0
        # Older clients lack both; with these, a server that sends too slowly is detected later.
        read, cut = getattr(raw, "read1", raw.read), getattr(raw, "shutdown", lambda: None)
        length = None if self._response.request.method == "HEAD" else self.length
        try:
            with watch_transfer(cut) as pulse:
                while True:
                    check_stop()
                    try:
                        piece = read(PIECE_BYTES, decode_content=False)
                    except _CLIENT_ERRORS as error:
                        if pulse.silent:
                            raise TransientError(
                                f"{self.where}: too little arrived in {SILENCE_S:.0f} s"
                            ) from None
                        if _innermost(error, IncompleteRead):
                            raise self._ended(received) from error
                        raise _failure(error, self.where) from error
                    if not piece:
                        break
                    received += len(piece)
                    pulse.bytes = received
                    yield piece
            if pulse.silent:
                raise TransientError(f"{self.where}: too little arrived in {SILENCE_S:.0f} s")
            if length is not None and received != length:
                raise self._ended(received)
        finally:
            self.close()

    def _ended(self, received: int) -> TransientError:
        of = "" if self.length is None else f" of {self.length}"
        return TransientError(f"{self.where}: the connection ended after {received}{of} bytes")

    def close(self) -> None:
        """Close the connection and discard the rest of the body."""
        self._response.close()


def read_from(client: HttpClient, url: str, where: str, offset: int) -> Generator[bytes, None, None]:
    """Yield a file from `offset` on, also from servers without ranges; the reader bounds and checks the bytes.

    Args:
        client: sends the requests.
        url: address of the file.
        where: name of the file in errors, without credentials.
        offset: first byte to read.

    Raises:
        MissingError, TransientError, RemoteError: as `HttpClient.request` and `Answer.pieces`.
    """
    response = client.request("GET", url, where, {"Range": f"bytes={offset}-"} if offset else {})
    if response.status == 416 or (offset and response.status == 206 and response.encoded):
        # The server has no such part, or counts compressed bytes: read from the start.
        response.close()
        response = client.request("GET", url, where)
    # A partial answer without a range is assumed to be the requested part; the digest will show a mistake.
    start = 0 if response.status == 200 else response.content_range[0] if response.content_range else offset
    if response.status not in (200, 206) or start not in (0, offset):
        response.close()
        raise RemoteError(f"{where}: the server answers with another part of the file than was asked for")
    skip = offset - start  # a server without ranges sends everything
    with closing(response.pieces(unpack=True)) as pieces:
        for piece in pieces:
            if skip < len(piece):
                yield piece[skip:]
            skip = max(0, skip - len(piece))


class _Session(requests.Session):
    """A session that does not follow redirects, since requests would read and unpack their bodies, of any size."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return None, since `HttpClient` follows redirects."""
        return None


def _unpacked(pieces: Iterator[bytes], encoding: str, where: str) -> Generator[bytes, None, None]:
    """Undo one compression, at most `PIECE_BYTES` at a time; bytes in another form are passed on unchanged."""
    if encoding in ("gzip", "x-gzip"):
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    elif encoding == "deflate":
        unpacker = zlib.decompressobj()
    else:  # not really compressed; if the bytes are damaged, their digest will show it
        yield from pieces
        return
    try:
        for piece in pieces:
            packed = piece
            while packed and not unpacker.eof:
                check_stop()
                yield unpacker.decompress(packed, PIECE_BYTES)
                packed = unpacker.unconsumed_tail
        yield unpacker.flush()
    except zlib.error as error:
        raise RemoteError(
            f"{where}: the server sends {encoding} that cannot be unpacked ({error})"
        ) from error
    if not unpacker.eof:
        raise TransientError(f"{where}: the {encoding} that the server sends breaks off")


def _origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port.

    Raises:
        ValueError: the text is no address.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        return parts.scheme, parts.netloc, -1
    return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]


def _number(text: str) -> int | None:
    """Return the number of bytes in a header; None if the header holds no such number."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _failure(error: Exception, where: str) -> RemoteError:
    """Return our error for an error that the client raised."""
    kind: Callable[[str], RemoteError] = TransientError
    if isinstance(error, _NEVER_PASSES) or (isinstance(error, ValueError) and not isinstance(error, OSError)):
        kind = RemoteError
    return kind(f"{where}: {describe(error)}")


def _innermost(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """Return the error of a type within a chain of wrapping errors; None if there is none."""
    while not isinstance(error, IncompleteRead) and error.args and isinstance(error.args[-1], BaseException):
        error = error.args[-1]
    return error if isinstance(error, kind) else None


def describe(error: Exception) -> str:
    """Return the innermost reason, without the addresses and objects around it in the client's message."""
    inner = _innermost(error, BaseException) or error
    reason = getattr(inner, "reason", None)
    if isinstance(reason, BaseException):
        inner = reason
    made = not isinstance(inner, urllib3.exceptions.NewConnectionError)  # in some versions a TimeoutError
    if made and isinstance(inner, TimeoutError | urllib3.exceptions.TimeoutError):
        return f"no answer within {SILENCE_S:.0f} s"
    # "HTTPConnection(...): Failed to establish a new connection: [Errno 111] Connection refused"
    return redacted(str(inner).rpartition("connection: ")[2] or type(inner).__name__)[:200]
