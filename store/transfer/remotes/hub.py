"""A dataset repository of the Hugging Face Hub as a remote, through its own client.

The token is the client's business (`hf auth login`, HF_TOKEN). Data go in commits of their own; what makes them count
goes in the last one. A pull reads from one commit, whatever is pushed in the meantime.
"""

import tempfile
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from featcache.store.errors import FeatcacheError, RemoteError
from featcache.store.transfer.address import Address, redacted
from featcache.store.transfer.flight import TransientError, check_stop
from featcache.store.transfer.remotes.base import (
    IN_FLIGHT,
    PIECE_BYTES,
    Counter,
    Listed,
    MissingError,
    Remote,
    Upload,
)
from featcache.store.transfer.sending import require_recorded

FILES_IN_COMMIT = 256
MAX_COMMITTED_BYTES = 2 * 10**9


class HubRemote(Remote):
    """A dataset repository, or a folder in one; ``org/name@revision`` reads from another revision than the last."""

    knows_digests = True

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        disable_progress_bars()  # there is one already
        self._hub = huggingface_hub
        self._api = huggingface_hub.HfApi()
        repository = address.place.removeprefix("datasets/")
        self._repository, _, self._asked = repository.partition("@")
        self.writable = not self._asked
        self._prefix = "/".join(address.parts)

    @cached_property
    def _commit(self) -> str:
        """The commit that everything is read from."""
        try:
            info = self._api.dataset_info(self._repository, revision=self._asked or None)
        except Exception as error:
            raise self._error("", error) from None
        return str(info.sha)

    def _name(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def stat(self, path: str) -> Listed:
        try:
            found = self._api.get_paths_info(
                self._repository, [self._name(path)], repo_type="dataset", revision=self._commit
            )
        except Exception as error:
            raise self._error(path, error) from None
        if not found or not hasattr(found[0], "blob_id"):
            raise MissingError(f"{self.where(path)}: not there")
        return _listed(found[0])

    def holds(self, listed: Listed, upload: Upload) -> bool:
        return listed.sha256 == upload.record.sha256

    def read(self, path: str, offset: int = 0) -> Generator[bytes, None, None]:
        with tempfile.TemporaryDirectory(prefix="featcache-hub-") as folder:
            check_stop()
            try:
                # The client's own download: it knows the Hub's stores, and takes up what is interrupted.
                file = self._hub.hf_hub_download(
                    self._repository,
                    self._name(path),
                    repo_type="dataset",
                    revision=self._commit,
                    local_dir=folder,
                )
            except Exception as error:
                raise self._error(path, error) from None
            with open(file, "rb", buffering=0) as source:
                source.seek(offset)
                while piece := source.read(PIECE_BYTES):
                    yield piece

    def files(self, folder: str) -> dict[str, Listed]:
        prefix = self._name(folder)
        try:
            items = self._api.list_repo_tree(
                self._repository, prefix, recursive=True, repo_type="dataset", revision=self._commit
            )
            return {
                item.path.removeprefix(f"{prefix}/"): _listed(item)
                for item in items
                if hasattr(item, "blob_id")
            }
        except Exception as error:
            found = self._error(folder, error)
            if isinstance(found, MissingError):
                return {}
            raise found from None

    def put(self, upload: Upload, count: Counter) -> None:
        self.put_all([upload], count)

    def put_all(self, uploads: Sequence[Upload], count: Counter) -> None:
        """Commit data a few hundred files at a time; until the manifest is there they count for nothing."""
        batch: list[Upload] = []
        for upload in uploads:
            full = len(batch) == FILES_IN_COMMIT
            if batch and (
                full or sum(u.record.bytes for u in batch) + upload.record.bytes > MAX_COMMITTED_BYTES
            ):
                self._commit_data(batch, count)
                batch = []
            batch.append(upload)
        if batch:
            self._commit_data(batch, count)

    def _commit_data(self, uploads: Sequence[Upload], count: Counter) -> None:
        operations = []
        for upload in uploads:
            check_stop()
            require_recorded(upload)
            operations.append(self._hub.CommitOperationAdd(self._name(upload.path), str(upload.source)))
        self._send(operations, f"featcache push: {len(uploads)} files of data")
        count(sum(upload.record.bytes for upload in uploads))

    def put_bytes(self, path: str, data: bytes) -> None:
        self.publish({path: data}, f"featcache: {path.rpartition('/')[2]}")

    def publish(self, documents: Mapping[str, bytes], message: str) -> None:
        operations = [
            self._hub.CommitOperationAdd(self._name(path), data) for path, data in documents.items()
        ]
        self._send(operations, message)

    def delete(self, paths: Sequence[str]) -> None:
        there = self._existing(paths)
        if there:
            self._send([self._hub.CommitOperationDelete(self._name(path)) for path in there], "featcache rm")

    def _existing(self, paths: Sequence[str]) -> list[str]:
        """Those that are there: the Hub refuses to delete what is not."""
        self.__dict__.pop("_commit", None)
        names = {self._name(path): path for path in paths}
        found: list[str] = []
        try:
            for start in range(0, len(paths), FILES_IN_COMMIT):
                some = list(names)[start : start + FILES_IN_COMMIT]
                infos = self._api.get_paths_info(
                    self._repository, some, repo_type="dataset", revision=self._commit
                )
                found += [names[info.path] for info in infos if info.path in names]
        except Exception as error:
            raise self._error("", error) from None
        return found

    def _send(self, operations: Sequence[Any], message: str) -> None:
        try:
            self._api.create_commit(
                self._repository,
                operations,
                commit_message=message,
                repo_type="dataset",
                num_threads=IN_FLIGHT,
            )
        except Exception as error:
            raise self._error("", error) from None
        self.__dict__.pop("_commit", None)

    def create(self) -> None:
        """Make the repository, private, where there is none; whoever pushed decides what to show.

        Raises:
            RemoteError: the token does not allow it.
        """
        try:
            self._api.create_repo(self._repository, repo_type="dataset", private=True, exist_ok=True)
        except Exception as error:
            raise self._error("", error) from None

    def _error(self, path: str, error: Exception) -> FeatcacheError:
        from huggingface_hub import errors

        if isinstance(error, FeatcacheError):
            return error
        where = self.where(path)
        while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # what the client met, not which of its steps it was in
        status = getattr(getattr(error, "response", None), "status_code", None)
        missing = (errors.EntryNotFoundError, errors.RevisionNotFoundError)
        if isinstance(error, missing):
            return MissingError(f"{where}: not there")
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            return RemoteError(
                f"{self.address}: there is no such repository, or no right to it; see `hf auth whoami` and `hf auth login`"
            )
        text = redacted(str(error), [self._api.token] if isinstance(self._api.token, str) else [])
        if status is not None and status < 500 and status not in (408, 409, 412, 429):
            return RemoteError(f"{where}: {text[:200]}")
        return TransientError(f"{where}: {text[:200] or type(error).__name__}")


def _listed(item: Any) -> Listed:
    changed = getattr(getattr(item, "last_commit", None), "date", None)
    modified = changed.timestamp() if isinstance(changed, datetime) else None
    return Listed(item.size, item.blob_id, modified, item.lfs.sha256 if item.lfs else None)
