"""Addresses of remotes and of the caches on them, and what of an address may be shown."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote, unquote_to_bytes

from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.home import expanded
from featcache.store.redaction import redacted, remember_login
from featcache.store.spec import KEY_DIGITS
from featcache.store.text import is_utf8

__all__ = [
    "Address",
    "CacheName",
    "is_address",
    "parse_address",
    "redacted",
    "require_clear_login",
    "split_cache_address",
    "split_key_prefix",
    "split_roots",
]

OBJECT_SCHEMES = ("s3", "gs", "az")
WEB_SCHEMES = ("http", "https")
SCHEMES = (*OBJECT_SCHEMES, "hf", "ssh", *WEB_SCHEMES, "file")
_ALIASES = {"sftp": "ssh", "gcs": "gs", "abfs": "az", "azure": "az", "s3a": "s3"}
_HUB_KINDS = ("datasets", "buckets")

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_CACHE_FOLDER = re.compile(rf"(?P<model>{_NAME})-(?P<key>[0-9a-f]{{{KEY_DIGITS}}})")
_DATASET = re.compile(_NAME)
_KEY_BEGINNING = re.compile(rf"[0-9a-f]{{4,{KEY_DIGITS}}}")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# A scheme that lacks a slash, by a typing error or because pathlib removed it.
_TORN_SCHEME = re.compile(rf"(?:{'|'.join((*SCHEMES, *_ALIASES))}):(?:/|.*@)", re.IGNORECASE)
_HOST = re.compile(r"(?:[\w.-]+|\[[\w:.%]+\])(?::(?P<port>[0-9]{0,5}))?")
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*")
_REPOSITORY = re.compile(r"[\w.-]+")
# The characters that RFC 3986 allows in a login, letters of other alphabets, and the escapes.
_LOGIN = re.compile(r"[\w.~!$&'()*+,;=:%-]*")
_AMBIGUOUS = (
    "where the login ends is ambiguous; percent-encode what is special in a login or a path, '/' as %2F, '@' as %40, "
    "a space as %20"
)
# A colon separates roots; the colon before a port does not end an address.
_ROOT_ADDRESS = re.compile(r"(?:\[[^\]]*\]|[^:/]*)(?::[0-9]+(?=[/:]|$))?(?P<path>/[^:]*)?")


@dataclass(frozen=True)
class CacheName:
    """The folder of a cache on a remote: ``<dataset>/<model>-<key>``."""

    dataset: str
    model: str
    key: str

    @property
    def folder(self) -> str:
        """``<model>-<key>``."""
        return f"{self.model}-{self.key}"

    def __str__(self) -> str:
        return f"{self.dataset}/{self.folder}"

    @classmethod
    def parse(cls, dataset: str, folder: str) -> Self | None:
        """Read the name from its two folders; None if they cannot be those of a cache."""
        match = _CACHE_FOLDER.fullmatch(folder)
        if match is None or not _DATASET.fullmatch(dataset):
            return None
        return cls(dataset, match["model"], match["key"])


@dataclass(frozen=True)
class Address:
    """Address of a remote, or of something on it."""

    scheme: str
    """One of `SCHEMES`."""
    host_or_bucket: str
    """Bucket, repository or host; empty for folders."""
    parts: tuple[str, ...]
    """Path below that; never ``.``, ``..`` or empty."""
    login: str = field(default="", repr=False)
    """``user`` or ``user:password`` as it stood in the address; the password is never shown."""

    @property
    def path(self) -> str:
        """The path as one text; absolute for folders and hosts."""
        path = "/".join(self.parts)
        return f"/{path}" if self.scheme in ("file", "ssh") else path

    @property
    def parent(self) -> "Address":
        """The address one level up."""
        return replace(self, parts=self.parts[:-1])

    def __str__(self) -> str:
        if self.scheme == "file":
            # Documents hold addresses, and cannot hold a name that is not UTF-8.
            return self.path if is_utf8(self.path) else f"file://{quote(os.fsencode(self.path))}"
        user = self.login.partition(":")[0]
        login = f"{user}@" if user and self.scheme == "ssh" else ""
        return "/".join((f"{self.scheme}://{login}{self.host_or_bucket}", *map(self._quoted, self.parts)))

    def _quoted(self, part: str) -> str:
        """Return a part of the path, escaped so that `parse_address` reads the same part again."""
        reserved = "%?#@" if self.scheme in WEB_SCHEMES else "@"
        return "".join(f"%{ord(character):02X}" if character in reserved else character for character in part)


def is_address(text: str) -> bool:
    """Return whether `text` is meant as the address of something remote, not as a folder, a key or a name."""
    return "://" in text or _TORN_SCHEME.match(text) is not None


def parse_address(text: str) -> Address:
    """Read an address such as ``s3://bucket/team``, ``hf://datasets/org/name``, ``ssh://host/path`` or a folder.

    No message shows a part of an address that could be a password. A login with an ambiguous end is refused.

    Raises:
        UnknownNameError: there is no such scheme.
        RequestError: the address names nothing, is ambiguous, or has an invalid part.
    """
    if not is_address(text):
        if not text:
            raise RequestError(
                "no remote is named, such as s3://bucket/team, hf://org/name or a shared folder"
            )
        return Address("file", "", Path(os.path.abspath(expanded(text))).parts[1:])
    match = _SCHEME.match(text)
    if match is None:
        raise RequestError(
            f"an address begins with its scheme and two slashes, such as https:// or s3://; valid: {', '.join(SCHEMES)}"
        )
    scheme = _ALIASES.get(match[1].lower(), match[1].lower())
    if scheme not in SCHEMES:
        raise UnknownNameError("kind of remote", scheme, SCHEMES)
    rest = text[match.end() :]
    if "?" in rest or "#" in rest:
        raise RequestError(
            f"{scheme}://...: an address has no query and no fragment; credentials go where the client looks for them, "
            "and '?' and '#' in a login or a path are written %3F and %23"
        )
    if scheme == "hf":
        return Address(scheme, *_split_hub_path(rest))
    host_or_bucket, _, path = rest.partition("/")
    login, _, host_or_bucket = host_or_bucket.rpartition("@")
    if scheme != "file" and ("@" in path or not _LOGIN.fullmatch(login)):
        raise RequestError(f"{scheme}://...: {_AMBIGUOUS}")
    _check_host(scheme, login, host_or_bucket)
    parts = _path_parts(scheme, host_or_bucket, path)
    if login and scheme in WEB_SCHEMES:
        remember_login(login)
    return Address(scheme, "" if scheme == "file" else host_or_bucket, parts, login)


def require_clear_login(address: str) -> None:
    """Refuse the address of a file on a web server if the end of its login is ambiguous; it may have a query.

    Raises:
        RequestError: a part of the login could be taken for a host or a path, and be sent. The message hides the address.
    """
    match = _SCHEME.match(address)
    authority = re.split("[/?#]", address[match.end() :], maxsplit=1)[0] if match else ""
    rest = address[match.end() + len(authority) :] if match else ""
    login, _, host_or_bucket = authority.rpartition("@")
    if not (match and _HOST.fullmatch(host_or_bucket) and _LOGIN.fullmatch(login)) or "@" in rest:
        raise RequestError(f"{match[0] if match else ''}...: {_AMBIGUOUS}")
    if login:
        remember_login(login)


def _check_host(scheme: str, login: str, host_or_bucket: str) -> None:
    """Refuse an invalid host or bucket, and a login that the scheme does not use."""
    if scheme == "file":
        if login or host_or_bucket not in ("", "localhost"):
            raise RequestError("file://... names a host; write three slashes, as in file:///data/caches")
        return
    if not host_or_bucket:
        raise RequestError(f"{scheme}://... names no {'bucket' if scheme in OBJECT_SCHEMES else 'host'}")
    if scheme in OBJECT_SCHEMES:
        if login:
            raise RequestError(
                f"{scheme}://...: no logins in addresses of buckets; credentials go where the client looks for them"
            )
        if not _BUCKET.fullmatch(host_or_bucket):
            raise RequestError(f"{scheme}://... names no valid bucket; write {scheme}://BUCKET/PATH")
        return
    if scheme == "ssh" and ":" in login:
        raise RequestError(f"{scheme}://...: no passwords in addresses; use a key or the agent")
    host = _HOST.fullmatch(host_or_bucket)
    if host is None or int(host["port"] or 0) > 65535:
        raise RequestError(f"{scheme}://... has no valid host and port; write {scheme}://HOST:PORT/PATH")


def _path_parts(scheme: str, host_or_bucket: str, path: str) -> tuple[str, ...]:
    """Decode the parts of a path; refuse parts that lead elsewhere or hold control characters."""
    decoded = _DECODERS.get(scheme, _with_at)
    parts = tuple(decoded(part) for part in path.split("/") if part)
    for part in parts:
        visible = os.fsencode(part).decode(errors="replace") if scheme == "file" else part
        if part in (".", "..") or "/" in part or "\\" in part or not visible.isprintable():
            raise RequestError(
                f"{scheme}://{host_or_bucket}/...: '.', '..', backslashes and control characters have no place in an address"
            )
    return parts


def _with_at(part: str) -> str:
    """Decode ``%40``, the only escape in paths of buckets and hosts; other uses of ``%`` are literal."""
    return part.replace("%40", "@")


def _file_name(part: str) -> str:
    """Decode a part of a file address to the bytes of a name, which need not be UTF-8."""
    return os.fsdecode(unquote_to_bytes(os.fsencode(part)))


_DECODERS: dict[str, Callable[[str], str]] = {"http": unquote, "https": unquote, "file": _file_name}


def _split_hub_path(rest: str) -> tuple[str, tuple[str, ...]]:
    """Split ``datasets/org/name[@revision]`` from the rest of the path; ``org/name`` alone is a dataset."""
    parts = [part for part in rest.split("/") if part]
    kind = parts.pop(0) if parts and parts[0] in _HUB_KINDS else "datasets"
    if len(parts) < 2:
        raise RequestError(
            "hf://... names no repository; write hf://datasets/OWNER/NAME or hf://buckets/OWNER/NAME"
        )
    owner, (name, at, revision) = parts[0], parts[1].partition("@")
    names = [owner, name, *([revision] if at else [])]
    if (
        not all(_REPOSITORY.fullmatch(name) for name in names)
        or revision in _HUB_KINDS
        or "@" in "".join(parts[2:])
    ):
        raise RequestError(
            "hf://...: no logins in addresses of the Hub; write hf://datasets/OWNER/NAME[@REVISION]/PATH, "
            "'@' in a path as %40"
        )
    return f"{kind}/{owner}/{parts[1]}", _path_parts("hf", f"{owner}/{name}", "/".join(parts[2:]))


def split_cache_address(address: Address) -> tuple[Address, CacheName | None]:
    """Divide the address of a cache into that of its remote and its name; the name is None for a bare remote."""
    if len(address.parts) >= 2:
        name = CacheName.parse(*address.parts[-2:])
        if name is not None:
            return address.parent.parent, name
    return address, None


def split_key_prefix(address: Address) -> tuple[Address, str] | None:
    """Divide ``REMOTE/0123ab`` into the remote and the beginning of a key; None if it does not end in one."""
    if address.parts and _KEY_BEGINNING.fullmatch(address.parts[-1]):
        return address.parent, address.parts[-1]
    return None


def split_roots(text: str) -> list[str]:
    """Split the value of FEATCACHE_ROOT at its colons, except for colons inside an address.

    Raises:
        RequestError: a colon may be part of a login. The message hides the value.
    """
    if os.pathsep != ":":
        return [part for part in text.split(os.pathsep) if part]
    parts, rest, remote = [], text, False
    while rest:
        match = _SCHEME.match(rest)
        part = rest[: _address_end(rest, match.end())] if match else rest.partition(":")[0]
        rest = rest[len(part) + 1 :]
        torn = _TORN_SCHEME.match(f"{part}:{rest[:1]}") is not None and not match
        if torn or (remote and not match and "@" in part and not expanded(part).is_dir()):
            raise RequestError(
                "FEATCACHE_ROOT cannot be divided safely: in the login of an address, '/', ':' and '@' are written "
                "%2F, %3A and %40, and a new folder with '@' in its name stands before the addresses"
            )
        remote = remote or match is not None
        parts.append(part)
    return [part for part in parts if part]


def _address_end(text: str, start: int) -> int:
    """Return the index behind the address at the beginning of `text`; its host or login begins at `start`."""
    slash = text.find("/", start)
    login = text.rfind("@", start, len(text) if slash < 0 else slash) + 1
    match = _ROOT_ADDRESS.match(text, max(start, login))
    return match.end() if match else len(text)
