"""A dataset repository of the Hugging Face Hub as a remote, through its own client.

The token is the client's business (`hf auth login`, HF_TOKEN). Data go in commits of their own; what makes them count
goes in the last one. A pull reads from one commit, whatever is pushed in the meantime.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import Any

from featcache.store.address import Address, redacted
from featcache.store.errors import FeatcacheError, MissingError, RemoteError
from featcache.store.network.concurrency import CONCURRENT_FILES, TransientError, check_stop
from featcache.store.network.http_client import HttpClient, read_from
from featcache.store.network.timeouts import ListingGuard
from featcache.store.transfer.remotes.base import Counter, Remote, RemoteFile, Upload, status_error
from featcache.store.transfer.remotes.sending import require_recorded

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
        repository = address.host_or_bucket.removeprefix("datasets/")
        self._repository, _, self._requested_revision = repository.partition("@")
        self.writable = not self._requested_revision
        self._client = HttpClient(login=self._sign, anywhere=True, refused=_NO_RIGHT)

    def _sign(self, request: Any) -> Any:
        """Add the client's token to a request to the Hub itself; redirected requests carry a signature instead."""
        token = self._hub.get_token()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    @cached_property
    def _commit(self) -> str:
        """The commit that everything is read from."""
        info = self._request(
            "", lambda: self._api.dataset_info(self._repository, revision=self._requested_revision or None)
        )
        return str(info.sha)

    def _infos(self, paths: Sequence[str]) -> list[Any]:
        """Return the Hub's information about the files that exist."""
        names = [self._name(path) for path in paths]
        return self._request(
            paths[0],
            lambda: self._api.get_paths_info(
                self._repository, names, repo_type="dataset", revision=self._commit
            ),
        )

    def stat(self, path: str) -> RemoteFile:
        infos = self._infos([path])
        if not infos or not hasattr(infos[0], "blob_id"):
            raise MissingError(f"{self.where(path)}: not there")
        return _remote_file(infos[0])

    def holds(self, remote_file: RemoteFile, upload: Upload) -> bool:
        return remote_file.sha256 == upload.record.sha256

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        """Stream a file, since the client would fetch all of it, of any size, before it returns anything."""
        url = self._hub.hf_hub_url(
            self._repository, self._name(path), repo_type="dataset", revision=self._commit
        )
        yield from read_from(self._client, url, self.where(path), offset)

    def files(self, folder: str) -> dict[str, RemoteFile]:
        def items(prefix: str) -> Iterable[Any]:
            return self._api.list_repo_tree(
                self._repository, prefix, recursive=True, repo_type="dataset", revision=self._commit
            )

        return self._listing(
            folder, items, lambda item: _remote_file(item) if hasattr(item, "blob_id") else None
        )

    def _listing(
        self, folder: str, items: Callable[[str], Iterable[Any]], convert: Callable[[Any], RemoteFile | None]
    ) -> dict[str, RemoteFile]:
        """List what is below a folder, within the bounds of every listing; nothing if there is no such folder.

        Args:
            folder: path of the folder.
            items: asks the client for what is below a name in the repository or bucket.
            convert: makes an entry of a file; None of a folder.
        """
        prefix, guard = self._name(folder), ListingGuard(self.where(folder))

        def listing() -> dict[str, RemoteFile]:
            remote_files: dict[str, RemoteFile] = {}
            for item in items(prefix):
                guard.count()
                entry = convert(item)
                if entry is not None:
                    remote_files[item.path.removeprefix(f"{prefix}/")] = entry
            return remote_files

        with suppress(MissingError), self._client_errors(folder):
            return guard.bounded(listing)
        return {}

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
        """Return the existing ones of `paths`, since the Hub refuses to delete missing files."""
        self.__dict__.pop("_commit", None)
        names = {self._name(path): path for path in paths}
        existing: list[str] = []
        for start in range(0, len(paths), FILES_IN_COMMIT):
            infos = self._infos(paths[start : start + FILES_IN_COMMIT])
            existing += [names[info.path] for info in infos if info.path in names]
        return existing

    def _send(self, operations: Sequence[Any], message: str) -> None:
        with self._client_errors(""):
            self._api.create_commit(
                self._repository,
                operations,
                commit_message=message,
                repo_type="dataset",
                num_threads=CONCURRENT_FILES,
            )
        self.__dict__.pop("_commit", None)

    def create(self) -> None:
        """Make the repository, private, where there is none; whoever pushed decides what to show.

        Raises:
            RemoteError: the token does not allow it.
        """
        self._request(
            "",
            lambda: self._api.create_repo(self._repository, repo_type="dataset", private=True, exist_ok=True),
        )

    def _translate_error(self, path: str, error: Exception) -> FeatcacheError | None:
        from huggingface_hub import errors

        where = self.where(path)
        while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # what the client met, not which of its steps it was in
        if isinstance(error, FeatcacheError):
            return error
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.EntryNotFoundError | errors.RevisionNotFoundError):
            return MissingError(f"{where}: not there")
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            return RemoteError(f"{self.address}: {_NO_RIGHT}")
        if isinstance(error, errors.OfflineModeIsEnabled):
            return RemoteError(f"{where}: the Hub's client is offline (HF_HUB_OFFLINE is set)")
        text = redacted(str(error), [self._api.token] if isinstance(self._api.token, str) else [])[:200]
        text = text or type(error).__name__
        if isinstance(status, int):
            text = text if str(status) in text else f"status {status}, {text}"
            return status_error(status, f"{where}: {text}")
        # The client's errors derive from those of its HTTP library, which differs between versions.
        if isinstance(error, (errors.HfHubHTTPError.__bases__[0], OSError)):
            return TransientError(f"{where}: {text}")
        if isinstance(error, ValueError) or raised_inside(error, "huggingface_hub"):
            return RemoteError(f"{where}: the Hub's client failed ({type(error).__name__}: {text})")
        return None

    def close(self) -> None:
        self._client.close()


_NO_RIGHT = "there is no such repository, or no right to it; see `hf auth whoami` and `hf auth login`"


def raised_inside(error: BaseException, package: str) -> bool:
    """Return whether the code of `package` itself raised an error, because of an unexpected answer."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith(f"{package}.")


def _remote_file(item: Any) -> RemoteFile:
    changed = getattr(getattr(item, "last_commit", None), "date", None)
    modified = changed.timestamp() if isinstance(changed, datetime) else None
    return RemoteFile(item.size, item.blob_id, modified, item.lfs.sha256 if item.lfs else None)
