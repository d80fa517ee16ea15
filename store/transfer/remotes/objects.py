"""Object stores as remotes, through obstore: S3 and what speaks its protocol, Google Cloud Storage, Azure.

Credentials are found where the store's own tools find them, and are never looked at here.
"""

import os
from collections.abc import Generator, Sequence
from datetime import timedelta
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

from featcache.store.errors import CacheError, FeatcacheError, RemoteError, RequestError
from featcache.store.transfer.address import Address, redacted
from featcache.store.transfer.flight import TransientError, check_stop
from featcache.store.transfer.remotes.base import (
    PIECE_BYTES,
    TIMEOUT_S,
    Counter,
    Listed,
    MissingError,
    Remote,
    Upload,
)
from featcache.store.transfer.sending import HashingFile, read_whole

SINGLE_PUT_BYTES = 16 * 2**20
"""Up to here a file goes in one request, whose answer tells the digest of what arrived."""
PART_BYTES = 8 * 2**20
DELETE_AT_ONCE = 1000
_OPTIONS: Any = {"timeout": "30 days", "connect_timeout": "10s", "read_timeout": f"{TIMEOUT_S:.0f}s"}
_RETRY: Any = {
    "max_retries": 3,
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2},
    "retry_timeout": timedelta(seconds=30),
}


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
        except FeatcacheError:
            raise
        except Exception as error:  # what the client lacks in the environment
            text = _reason(redacted(str(error)))
            raise RequestError(
                f"{address} cannot be opened ({text}); {_CREDENTIALS[address.scheme]}"
            ) from None
        self._prefix = "/".join(address.parts)
        self._etag_is_md5 = True

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def stat(self, path: str) -> Listed:
        try:
            return _listed(self._client.head(self._store, self._key(path)))
        except Exception as error:
            raise self._error(path, error) from None

    def holds(self, listed: Listed, upload: Upload) -> bool:
        """By size, and by the MD5 that a plain upload has for a tag: a push may have been killed before it compared."""
        if listed.size != upload.record.bytes:
            return False
        if upload.record.bytes > SINGLE_PUT_BYTES:
            return True  # the store has held every part to its signed digest
        return listed.version.strip('"') == md5(read_whole(upload), usedforsecurity=False).hexdigest()

    def read(self, path: str, offset: int = 0) -> Generator[bytes, None, None]:
        try:
            found = self._client.get(
                self._store, self._key(path), options={"range": {"offset": offset}} if offset else {}
            )
            yield from found.stream(min_chunk_size=PIECE_BYTES)
        except Exception as error:
            raise self._error(path, error) from None

    def files(self, folder: str) -> dict[str, Listed]:
        prefix = f"{self._key(folder)}/"
        found = {}
        try:
            for page in self._client.list(self._store, prefix):
                for item in page:
                    found[item["path"].removeprefix(prefix)] = _listed(item)
        except Exception as error:
            raise self._error(folder, error) from None
        return found

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
                self._client.put(
                    self._store,
                    self._key(upload.path),
                    file,
                    use_multipart=True,
                    chunk_size=PART_BYTES,
                    max_concurrency=2,
                )
                file.require_sent()
            except CacheError:
                self.delete([upload.path])
                raise
            except Exception as error:
                check_stop()
                raise self._error(upload.path, error) from None

    def _put_checked(self, path: str, data: bytes) -> None:
        """Store a file; where the answer does not show that the right bytes arrived, read them back."""
        store = self._unsigned if self._etag_is_md5 else self._store
        try:
            done = self._client.put(store, self._key(path), data, use_multipart=False)
        except Exception as error:
            raise self._error(path, error) from None
        etag = (done["e_tag"] or "").strip('"')
        if not self._etag_is_md5 or etag == md5(data, usedforsecurity=False).hexdigest():
            return
        if sha256(b"".join(self.read(path))).digest() != sha256(data).digest():
            self.delete([path])
            raise TransientError(f"{self.where(path)}: what arrived is not what was sent")
        self._etag_is_md5 = False  # encrypted stores have tags of another kind

    def delete(self, paths: Sequence[str]) -> None:
        keys = [self._key(path) for path in paths]
        for start in range(0, len(keys), DELETE_AT_ONCE):
            try:
                self._client.delete(self._store, keys[start : start + DELETE_AT_ONCE])
            except FileNotFoundError:
                continue
            except Exception as error:
                raise self._error("", error) from None

    def _error(self, path: str, error: Exception) -> FeatcacheError:
        """What the client's error means; its text may quote whole requests."""
        from obstore import exceptions

        if isinstance(error, FeatcacheError):
            return error
        where, text = self.where(path), redacted(str(error))
        if "NoSuchBucket" in text or "BucketNotFound" in text:
            return RemoteError(f"{self.address.scheme}://{self.address.place}: there is no such bucket")
        if isinstance(error, FileNotFoundError):
            return MissingError(f"{where}: not there")
        refused = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
        if isinstance(error, refused) or "403 Forbidden" in text or "401 Unauthorized" in text:
            return RemoteError(f"{where}: refused; {_CREDENTIALS[self.address.scheme]}")
        if "CredentialsError" in text or "169.254.169.254" in text or "redentials" in text:
            return RemoteError(f"{where}: no credentials were found; {_CREDENTIALS[self.address.scheme]}")
        return TransientError(f"{where}: {_reason(text)}")


_CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a public bucket: AWS_SKIP_SIGNATURE=true)",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and a key or token, or AZURE_USE_AZURE_CLI=true after `az login`",
}


def _reason(text: str) -> str:
    """The end of a chain of causes, which says it in the fewest words."""
    for words in ("Connection refused", "timed out", "dns error", "certificate", "Connection reset"):
        if words.lower() in text.lower():
            return f"cannot be reached ({words})"
    return text[:200]


def _listed(item: Any) -> Listed:
    modified = item["last_modified"].timestamp()
    return Listed(item["size"], item["e_tag"] or f"{modified}-{item['size']}", modified)


def _store(address: Address, **settings: Any) -> Any:
    from obstore.store import AzureStore, GCSStore, S3Store

    if address.scheme == "s3":
        endpoint, provider = _aws()
        allow = {"allow_http": True} if endpoint and endpoint.startswith("http://") else {}
        settings |= {"endpoint": endpoint} if endpoint else {}
        if provider is not None:
            settings["credential_provider"] = provider
        return S3Store(address.place, client_options=_OPTIONS | allow, retry_config=_RETRY, **settings)
    kind: Any = GCSStore if address.scheme == "gs" else AzureStore
    return kind(address.place, client_options=dict(_OPTIONS), retry_config=_RETRY)


def _aws() -> tuple[str | None, Any]:
    """Endpoint and credentials of the environment; those of a profile through botocore, which knows all its forms."""
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
