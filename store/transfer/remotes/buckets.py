"""A bucket of the Hugging Face Hub as a remote: the Hub's own object store, without history."""

import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.store.errors import RequestError
from featcache.store.transfer.address import Address
from featcache.store.transfer.flight import check_stop
from featcache.store.transfer.remotes.base import (
    IN_FLIGHT,
    PIECE_BYTES,
    Counter,
    Listed,
    MissingError,
    Upload,
)
from featcache.store.transfer.remotes.hub import HubRemote
from featcache.store.transfer.sending import require_recorded


class BucketRemote(HubRemote):
    """A bucket, or a folder in one. What is in it is told apart by size alone."""

    knows_digests = False

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._bucket = address.place.removeprefix("buckets/")
        if not hasattr(self._api, "batch_bucket_files"):
            raise RequestError("buckets need a newer client: pip install --upgrade huggingface_hub")

    def stat(self, path: str) -> Listed:
        try:
            found = list(self._api.get_bucket_paths_info(self._bucket, [self._name(path)]))
        except Exception as error:
            raise self._error(path, error) from None
        if not found:
            raise MissingError(f"{self.where(path)}: not there")
        return _listed(found[0])

    def holds(self, listed: Listed, upload: Upload) -> bool:
        return listed.size == upload.record.bytes

    def read(self, path: str, offset: int = 0) -> Generator[bytes, None, None]:
        with tempfile.TemporaryDirectory(prefix="featcache-hub-") as folder:
            check_stop()
            target = Path(folder, "file")
            try:
                self._api.download_bucket_files(
                    self._bucket, [(self._name(path), target)], raise_on_missing_files=True
                )
            except Exception as error:
                raise self._error(path, error) from None
            with target.open("rb", buffering=0) as source:
                source.seek(offset)
                while piece := source.read(PIECE_BYTES):
                    yield piece

    def files(self, folder: str) -> dict[str, Listed]:
        prefix = self._name(folder)
        try:
            items = self._api.list_bucket_tree(self._bucket, f"{prefix}/", recursive=True)
            return {
                item.path.removeprefix(f"{prefix}/"): _listed(item)
                for item in items
                if hasattr(item, "xet_hash")
            }
        except Exception as error:
            found = self._error(folder, error)
            if isinstance(found, MissingError):
                return {}
            raise found from None

    def put_all(self, uploads: Sequence[Upload], count: Counter) -> None:
        for start in range(0, len(uploads), IN_FLIGHT):
            some = uploads[start : start + IN_FLIGHT]
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
        """Those of `paths` that are there."""
        names = {self._name(path): path for path in paths}
        try:
            return [
                names[i.path]
                for i in self._api.get_bucket_paths_info(self._bucket, list(names))
                if i.path in names
            ]
        except Exception as error:
            raise self._error("", error) from None

    def create(self) -> None:
        try:
            self._api.create_bucket(self._bucket, private=True, exist_ok=True)
        except Exception as error:
            raise self._error("", error) from None

    def _batch(self, **operations: Any) -> None:
        try:
            self._api.batch_bucket_files(self._bucket, **operations)
        except Exception as error:
            raise self._error("", error) from None


def _listed(item: Any) -> Listed:
    changed = item.uploaded_at or item.mtime
    return Listed(item.size, item.xet_hash, changed.timestamp() if changed else None)
