"""Object stores as remotes, through obstore: S3 and what speaks its protocol, Google Cloud Storage, Azure.

Credentials are found where the store's own tools find them, and are never looked at here.
"""

import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import timedelta
from hashlib import md5, sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from obstore import exceptions as obstore_errors

from featcache.store.address import Address, redacted
from featcache.store.errors import CacheError, FeatcacheError, MissingError, RemoteError, RequestError
from featcache.store.network.concurrency import TransientError, check_stop
from featcache.store.network.timeouts import (
    CONNECT_S,
    SILENCE_S,
    ListingGuard,
    MinimumSpeed,
)
from featcache.store.transfer.remotes.base import Counter, Remote, RemoteFile, Upload, status_error
from featcache.store.transfer.remotes.sending import HashingFile, read_whole

SINGLE_PUT_BYTES = 16 * 2**20
"""Largest file that is sent in one request; the answer tells the digest of the received bytes."""
PART_BYTES = 8 * 2**20
DELETE_AT_ONCE = 1000
_OPTIONS: Any = {
    "timeout": "30 days",
    "connect_timeout": f"{CONNECT_S:.0f}s",
    "read_timeout": f"{SILENCE_S:.0f}s",
}
# The client retries only immediate failures; `retry` handles a silent server, so that the waits do not multiply.
_RETRY: Any = {
    "max_retries": 3,
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2},
    "retry_timeout": timedelta(seconds=SILENCE_S / 2),
}
READ_BYTES = 1
"""Bytes that the client collects before it passes any on."""


class ObjectRemote(Remote):
    """A bucket, or what is below a path in one."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        import obstore

        self._client = obstore
        try:
            self._store = _store(address)
            # Whose answers tell the MD5 of what arrived need no digest in the signature as well.
            self._unsigned = _store(address, unsigned_payload=True) if address.scheme == "s3" else self._store
        except (*_CLIENT_ERRORS, ValueError) as error:  # settings that the client lacks in the environment
            if isinstance(error, FeatcacheError):
                raise
            raise RequestError(
                f"{address} cannot be opened ({_reason(redacted(str(error)))}); {_CREDENTIALS[address.scheme]}"
            ) from error
        self._etag_is_md5 = True

    def stat(self, path: str) -> RemoteFile:
        return _remote_file(self._request(path, lambda: self._client.head(self._store, self._name(path))))

    def holds(self, remote_file: RemoteFile, upload: Upload) -> bool:
        """Compare the size, and the MD5 that a plain upload has for a tag: a push may have been killed before it compared."""
        if remote_file.size != upload.record.bytes:
            return False
        if upload.record.bytes > SINGLE_PUT_BYTES:
            return True  # the store has held every part to its signed digest
        return remote_file.version.strip('"') == md5(read_whole(upload), usedforsecurity=False).hexdigest()

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        options: Any = {"range": {"offset": offset}} if offset else {}
        pace = MinimumSpeed(self.where(path))
        with self._client_errors(path):
            response = self._client.get(self._store, self._name(path), options=options)
            # The client bounds each wait for bytes and passes small pieces on, so a slow trickle can be detected.
            for piece in response.stream(min_chunk_size=READ_BYTES):
                pace.count(len(piece))
                yield piece

    def files(self, folder: str) -> dict[str, RemoteFile]:
        prefix, guard = f"{self._name(folder)}/", ListingGuard(self.where(folder))

        def listing(pages: Iterable[Sequence[Any]]) -> dict[str, RemoteFile]:
            remote_files: dict[str, RemoteFile] = {}
            for page in pages:
                guard.count(len(page))
                remote_files |= {item["path"].removeprefix(prefix): _remote_file(item) for item in page}
            return remote_files

        with self._client_errors(folder):
            try:
                return guard.bounded(lambda: listing(self._client.list(self._store, prefix)))
            except obstore_errors.InvalidPathError:
                # A single key that cannot be a path (a//b, ./x, control characters) makes the client refuse the whole page.
                if self.address.scheme != "s3" or find_spec("boto3") is None:
                    raise
                return guard.bounded(lambda: listing(_pages_of_any_keys(self.address.host_or_bucket, prefix)))

    def put(self, upload: Upload, count: Counter) -> None:
        if upload.record.bytes > SINGLE_PUT_BYTES:
            self._put_parts(upload, count)
            return
        data = read_whole(upload)
        self._put_checked(upload.path, data)
        count(len(data))

    def put_bytes(self, path: str, data: bytes) -> None:
        self._put_checked(path, data)

    def _put_parts(self, upload: Upload, count: Counter) -> None:
        with HashingFile(upload, count) as file:
            try:
                with self._client_errors(upload.path):
                    self._client.put(
                        self._store,
                        self._name(upload.path),
                        file,
                        use_multipart=True,
                        chunk_size=PART_BYTES,
                        max_concurrency=2,
                    )
                file.require_sent()
            except CacheError:
                self.delete([upload.path])
                raise
            except Exception:
                check_stop()  # a stop makes the file unreadable for the client
                raise

    def _put_checked(self, path: str, data: bytes) -> None:
        """Store a file; where the answer does not show that the right bytes arrived, read them back."""
        store = self._unsigned if self._etag_is_md5 else self._store
        with self._client_errors(path):
            done = self._client.put(store, self._name(path), data, use_multipart=False)
        etag = (done["e_tag"] or "").strip('"')
        if not self._etag_is_md5 or etag == md5(data, usedforsecurity=False).hexdigest():
            return
        if _differs(self.read(path, 0, len(data)), data):
            self.delete([path])
            raise TransientError(f"{self.where(path)}: what arrived is not what was sent")
        self._etag_is_md5 = False  # encrypted stores have tags of another kind

    def delete(self, paths: Sequence[str]) -> None:
        keys = [self._name(path) for path in paths]
        for start in range(0, len(keys), DELETE_AT_ONCE):
            some = keys[start : start + DELETE_AT_ONCE]
            with suppress(MissingError), self._client_errors(paths[start]):
                self._client.delete(self._store, some)

    def _translate_error(self, path: str, error: Exception) -> FeatcacheError | None:
        """Translate an error of the client, mostly from its text, which may quote whole requests."""
        credentials = _CREDENTIALS[self.address.scheme]
        if type(error).__module__.startswith("botocore."):  # errors of a profile, such as an expired login
            return RemoteError(f"{self.where(path)}: {redacted(str(error))[:200]}; {credentials}")
        if not isinstance(error, _CLIENT_ERRORS):
            return None
        where, text = self.where(path), str(error)
        match = _STATUS.search(text)
        status = int(match[1]) if match else None
        if "NoSuchBucket" in text or "BucketNotFound" in text or "ContainerNotFound" in text:
            return RemoteError(
                f"{self.address.scheme}://{self.address.host_or_bucket}: there is no such bucket"
            )
        if isinstance(error, FileNotFoundError) or status == 404:
            return MissingError(f"{where}: not there (status 404)")
        refused = (obstore_errors.PermissionDeniedError, obstore_errors.UnauthenticatedError)
        if isinstance(error, refused) or status in (401, 403):
            return RemoteError(f"{where}: refused{f' (status {status})' if status else ''}; {credentials}")
        if "CredentialsError" in text or "169.254.169.254" in text or "redentials" in text:
            return RemoteError(f"{where}: no credentials were found; {credentials}")
        if isinstance(error, obstore_errors.InvalidPathError):
            other = ", or pip install 'featcache[aws]'" if self.address.scheme == "s3" else ""
            return RemoteError(
                f"{where}: a key there cannot be a path, so the client lists none of them; rename or remove it{other} "
                f"({_first_line(text)})"
            )
        if status is not None:
            return status_error(status, f"{where}: the server answers with status {status}")
        if any(word in text for word in _UNREACHABLE):
            return TransientError(f"{where}: {_reason(redacted(text))}")
        return RemoteError(f"{where}: {_first_line(text)}")


_STATUS = re.compile(r"Server returned (?:non-2xx status code|error response)[^0-9]{0,20}([0-9]{3})")
# Messages of the client for missing answers, and for answers that broke off.
_UNREACHABLE = ("HTTP error", "HttpError", "error sending request", "error decoding response body")
_CLIENT_ERRORS = (obstore_errors.BaseError, OSError)
_CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a public bucket: AWS_SKIP_SIGNATURE=true)",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and a key or token, or AZURE_USE_AZURE_CLI=true after `az login`",
}


def _reason(text: str) -> str:
    """Return the end of a chain of causes, which states the reason in the fewest words."""
    for words in ("Connection refused", "Connection reset", "dns error", "certificate"):
        if words.lower() in text.lower():
            return f"cannot be reached ({words})"
    if any(words in text for words in ("timed out", "TimedOut", "Timeout")):
        return f"no answer within {SILENCE_S:.0f} s"
    return _first_line(text)


def _first_line(text: str) -> str:
    """Return the text before the client's dump of its own objects."""
    return redacted(text.partition("Debug source")[0])[:200]


def _differs(pieces: Iterator[bytes], data: bytes) -> bool:
    """Return whether the stream differs from `data`; keep no more bytes than needed."""
    size, digest = 0, sha256()
    for piece in pieces:
        size += len(piece)
        if size > len(data):
            return True
        digest.update(piece)
    return digest.digest() != sha256(data).digest()


def _remote_file(item: Any) -> RemoteFile:
    modified = item["last_modified"].timestamp()
    return RemoteFile(item["size"], item["e_tag"] or f"{modified}-{item['size']}", modified)


def _pages_of_any_keys(bucket: str, prefix: str) -> Iterator[list[dict[str, Any]]]:
    """List S3 through Amazon's own client, which accepts every key; items are named as in obstore."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    settings: dict[str, Any] = {
        "connect_timeout": CONNECT_S,
        "read_timeout": SILENCE_S,
        "retries": {"max_attempts": 1},
        "s3": {"addressing_style": "path"},  # as obstore addresses buckets
    }
    if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes", "on"):
        settings["signature_version"] = UNSIGNED
    session = boto3.Session()
    region = session.region_name or os.environ.get("AWS_REGION", "us-east-1")
    client = session.client("s3", region_name=region, config=Config(**settings))
    with closing(client):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield [
                {
                    "path": item["Key"],
                    "size": item["Size"],
                    "e_tag": item.get("ETag"),
                    "last_modified": item["LastModified"],
                }
                for item in page.get("Contents", ())
            ]


def _store(address: Address, **settings: Any) -> Any:
    from obstore.store import AzureStore, GCSStore, S3Store

    if address.scheme == "s3":
        endpoint, provider = _aws()
        allow = {"allow_http": True} if endpoint and endpoint.startswith("http://") else {}
        settings |= {"endpoint": endpoint} if endpoint else {}
        if provider is not None:
            settings["credential_provider"] = provider
        return S3Store(
            address.host_or_bucket, client_options=_OPTIONS | allow, retry_config=_RETRY, **settings
        )
    kind: Any = GCSStore if address.scheme == "gs" else AzureStore
    return kind(address.host_or_bucket, client_options=dict(_OPTIONS), retry_config=_RETRY)


def _aws() -> tuple[str | None, Any]:
    """Return endpoint and credentials of the environment; those of a profile through botocore, which knows all its forms."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    plain = "AWS_ACCESS_KEY_ID" in os.environ or os.environ.get("AWS_SKIP_SIGNATURE")
    files = [
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    ]
    if not profile and (plain or not any(Path(os.path.expanduser(file)).is_file() for file in files)):
        return endpoint, None
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise RequestError("profiles of AWS need boto3: pip install 'featcache[aws]'") from None
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session(profile_name=profile)
        if session.get_credentials() is None:
            return endpoint, None
        # A profile may name a store of another maker; Amazon's own is found by the region.
        of_profile = session.client("s3", region_name=session.region_name or "us-east-1").meta.endpoint_url
        endpoint = endpoint or (None if ".amazonaws." in of_profile else of_profile)
        return endpoint, Boto3CredentialProvider(session)
    except (BotoCoreError, ValueError) as error:
        raise RequestError(f"the profile of AWS cannot be used: {redacted(str(error))}") from None
