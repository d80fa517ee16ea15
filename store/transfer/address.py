"""Addresses of remotes and of the caches on them, and what of an address may be shown."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.spec import KEY_DIGITS

OBJECT_SCHEMES = ("s3", "gs", "az")
WEB_SCHEMES = ("http", "https")
SCHEMES = (*OBJECT_SCHEMES, "hf", "ssh", *WEB_SCHEMES, "file")
_ALIASES = {"sftp": "ssh", "gcs": "gs", "abfs": "az", "azure": "az", "s3a": "s3"}
_HUB_KINDS = ("datasets", "buckets")

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_CACHE_FOLDER = re.compile(rf"(?P<model>{_NAME})-(?P<key>[0-9a-f]{{{KEY_DIGITS}}})")
_DATASET = re.compile(_NAME)
_KEY_BEGINNING = re.compile(rf"[0-9a-f]{{4,{KEY_DIGITS}}}")
# Between roots stands a colon; those of ``s3://`` and of a port do not end an address.
_ROOT = re.compile(r"[a-z][a-z0-9+.-]*://[^:]*(?:(?<=@)[^:]*)?(?::[0-9]+(?=/|:|$)[^:]*)?|[^:]+")


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
    """Where a remote, or something on it, lies."""

    scheme: str
    """One of `SCHEMES`."""
    place: str
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
            return self.path
        user = self.login.partition(":")[0]
        login = f"{user}@" if user and self.scheme == "ssh" else ""
        return f"{self.scheme}://{login}{self.place}" + (f"/{'/'.join(self.parts)}" if self.parts else "")


def is_address(text: str) -> bool:
    """Whether `text` is meant as the address of something remote, not as a folder, a key or a name."""
    return "://" in text


def parse_address(text: str) -> Address:
    """Read an address such as ``s3://bucket/team``, ``hf://datasets/org/name``, ``ssh://host/path`` or a folder.

    Raises:
        UnknownNameError: there is no such scheme.
        RequestError: it names nothing, or has a part that cannot be.
    """
    if not is_address(text):
        if not text:
            raise RequestError(
                "no remote is named, such as s3://bucket/team, hf://org/name or a shared folder"
            )
        return Address("file", "", Path(os.path.abspath(Path(text).expanduser())).parts[1:])
    scheme, _, rest = text.partition("://")
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    if scheme not in SCHEMES:
        raise UnknownNameError("kind of remote", scheme, SCHEMES)
    if "?" in rest or "#" in rest:
        raise RequestError(
            f"{redacted(text)}: an address has no query; credentials go where the client looks for them"
        )
    place, _, path = rest.partition("/")
    login, _, place = place.rpartition("@")
    parts = [unquote(part) if scheme in WEB_SCHEMES else part for part in path.split("/") if part]
    if scheme == "hf":
        login, place, parts = "", *_hub_place(text, f"{login}@{place}" if login else place, parts)
    if not place and scheme != "file":
        raise RequestError(
            f"{redacted(text)} names no {'host' if scheme in ('ssh', *WEB_SCHEMES) else 'bucket'}"
        )
    if any(part in (".", "..") or "/" in part or "\\" in part or not part.isprintable() for part in parts):
        raise RequestError(
            f"{redacted(text)}: '.', '..', backslashes and control characters have no place in an address"
        )
    if scheme in WEB_SCHEMES:
        _check_port(text)
    return Address(scheme, place, tuple(parts), login)


def _hub_place(text: str, first: str, parts: list[str]) -> tuple[str, list[str]]:
    """``datasets/org/name[@revision]`` and what follows; ``org/name`` alone is a dataset."""
    parts = [first, *parts]
    kind = parts.pop(0) if parts[0] in _HUB_KINDS else "datasets"
    if len(parts) < 2 or not all(parts[:2]):
        raise RequestError(
            f"{text} names no repository; write hf://datasets/OWNER/NAME or hf://buckets/OWNER/NAME"
        )
    return f"{kind}/{parts[0]}/{parts[1]}", parts[2:]


def _check_port(text: str) -> None:
    try:
        _ = urlsplit(text).port
    except ValueError:
        raise RequestError(f"{redacted(text)} has no valid port") from None


def cache_name(address: Address) -> tuple[Address, CacheName | None]:
    """Divide the address of a cache into that of its remote and its name; the name is None for a bare remote."""
    if len(address.parts) >= 2:
        name = CacheName.parse(*address.parts[-2:])
        if name is not None:
            return address.parent.parent, name
    return address, None


def key_beginning(address: Address) -> tuple[Address, str] | None:
    """Divide ``REMOTE/0123ab`` into the remote and the beginning of a key; None if it does not end in one."""
    if address.parts and _KEY_BEGINNING.fullmatch(address.parts[-1]):
        return address.parent, address.parts[-1]
    return None


def split_roots(text: str) -> list[str]:
    """Divide the value of FEATCACHE_ROOT at its colons; those inside an address stay."""
    return [part for part in (_ROOT.findall(text) if os.pathsep == ":" else text.split(os.pathsep)) if part]


_SECRET_WORDS = ("SECRET", "TOKEN", "PASSWORD", "ACCESS_KEY", "ACCOUNT_KEY", "SAS")


def redacted(text: str, secrets: Sequence[str] = ()) -> str:
    """Return `text`, one line, without logins and queries of addresses, and without any credential of the environment."""
    known = [
        value for name, value in os.environ.items() if any(word in name.upper() for word in _SECRET_WORDS)
    ]
    for secret in (*secrets, *known):
        if len(secret) >= 8:
            text = text.replace(secret, "***")
    text = re.sub(r"://[^/@\s\"']*@", "://", text)
    text = re.sub(r"(\b[a-z]+://[^\s?\"'<>]*)\?[^\s\"'<>)]*", r"\1", text)
    return " ".join(text.split())
