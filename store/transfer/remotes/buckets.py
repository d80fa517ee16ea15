"""A bucket of the Hugging Face Hub as a remote: the Hub's own object store, without history."""

import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.store.address import Address, redacted
from featcache.store.errors import FeatcacheError, MissingError, RemoteError, RequestError
from featcache.store.network.concurrency import CONCURRENT_FILES, PIECE_BYTES, TransientError, check_stop
from featcache.store.transfer.remotes.base import Counter, RemoteFile, Upload
from featcache.store.transfer.remotes.hub import HubRemote
from featcache.store.transfer.remotes.sending import require_recorded


class BucketRemote(HubRemote):
    """A bucket, or a folder in one. What is in it is told apart by size alone."""

    knows_digests = False

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._bucket = address.host_or_bucket.removeprefix("buckets/")
        if not hasattr(self._api, "batch_bucket_files"):
            raise RequestError("buckets need a newer client: pip install --upgrade huggingface_hub")

    def stat(self, path: str) -> RemoteFile:
        return _remote_file(self._info(path))

    def _info(self, path: str) -> Any:
        infos = self._infos([path])
        if not infos:
            raise MissingError(f"{self.where(path)}: not there")
        return infos[0]

    def _infos(self, paths: Sequence[str]) -> list[Any]:
        names = [self._name(path) for path in paths]
        return self._request(
            paths[0] if paths else "",
            lambda: list(self._api.get_bucket_paths_info(self._bucket, names)),
        )

    def holds(self, remote_file: RemoteFile, upload: Upload) -> bool:
        return remote_file.size == upload.record.bytes

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        """Fetch a file through the client; check its size first, since the client returns a file only as a whole."""
        info = self._info(path)
        if info.size > limit:
            raise RemoteError(
                f"{self.where(path)}: {info.size} bytes, at most {limit} are expected; nothing was fetched"
            )
        with tempfile.TemporaryDirectory(prefix="featcache-hub-") as folder:
            check_stop()
            target = Path(folder, "file")
            with self._client_errors(path):
                self._api.download_bucket_files(
                    self._bucket, [(self._name(path), target)], raise_on_missing_files=True
                )
            with target.open("rb", buffering=0) as source:
                source.seek(offset)
                while piece := source.read(PIECE_BYTES):
                    yield piece

    def files(self, folder: str) -> dict[str, RemoteFile]:
        def items(prefix: str) -> Iterable[Any]:
            return self._api.list_bucket_tree(self._bucket, f"{prefix}/", recursive=True)

        return self._listing(
            folder, items, lambda item: _remote_file(item) if hasattr(item, "xet_hash") else None
        )

    def put_all(self, uploads: Sequence[Upload], count: Counter) -> None:
        for start in range(0, len(uploads), CONCURRENT_FILES):
            some = uploads[start : start + CONCURRENT_FILES]
            for upload in some:
                check_stop()
                require_recorded(upload)
            self._batch(add=[(upload.source, self._name(upload.path)) for upload in some])
            count(sum(upload.record.bytes for upload in some))

    def publish(self, documents: Mapping[str, bytes], message: str) -> None:
        # One by one: a bucket has no commits, so the order is what keeps a half-pushed cache from counting.
        for path, data in documents.items():
            self._batch(add=[(data, self._name(path))])

    def delete(self, paths: Sequence[str]) -> None:
        there = self.list_paths(paths)
        if there:
            self._batch(delete=[self._name(path) for path in there])

    def list_paths(self, paths: Sequence[str]) -> list[str]:
        """Return the existing ones of `paths`."""
        names = {self._name(path): path for path in paths}
        return [names[info.path] for info in self._infos(paths) if info.path in names]

    def create(self) -> None:
        self._request("", lambda: self._api.create_bucket(self._bucket, private=True, exist_ok=True))

    def _batch(self, **operations: Any) -> None:
        with self._client_errors(""):
            self._api.batch_bucket_files(self._bucket, **operations)

    def _translate_error(self, path: str, error: Exception) -> FeatcacheError | None:
        translated = super()._translate_error(path, error)
        if translated is None and type(error) is RuntimeError:
            # The transfer library of the client (hf_xet) has a single class for all of its errors.
            return TransientError(f"{self.where(path)}: {redacted(str(error))[:200]}")
        return translated


def _remote_file(item: Any) -> RemoteFile:
    changed = item.uploaded_at or item.mtime
    return RemoteFile(item.size, item.xet_hash, changed.timestamp() if changed else None)
