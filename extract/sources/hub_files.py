"""Files of a dataset repository on the Hugging Face Hub, through huggingface_hub: in parallel, with progress, resume and digests.

They lie in the Hub client's own cache, which other tools share. What lies there already is found without a network, and
without importing the client.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from featcache.extraction.sources.data_folders import derived_path
from featcache.store.errors import CacheError, DatasetError, UnknownNameError, similar_names
from featcache.store.files import read_sealed, sha256_file, text_list, write_sealed
from featcache.store.hub import client_errors, hub_problem, offline_if_unreachable
from featcache.store.progress import Reporter, Update

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

THREADS = 8
MAIN = "main"
MB = 10**6
SLACK_BYTES = 2**26
"""Bytes allowed beyond twice the listed size; after a failure the client counts received bytes twice."""


@dataclass(frozen=True)
class Snapshot:
    """Files of a repository at one commit."""

    folder: Path
    commit: str


def hub_folder(repository: str) -> Path:
    """Return the folder where the Hub's client keeps a dataset repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}"


def cached_snapshot(repository: str, revision: str | None, enough: Callable[[Path], bool]) -> Snapshot | None:
    """Return the local copy of a revision if it is complete, by featcache's own notes or by `enough`."""
    folder, commit = hub_folder(repository), revision or MAIN
    reference = folder / "refs" / commit
    if reference.is_file():
        commit = reference.read_text(encoding="ascii", errors="replace").strip()
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        return None
    noted = _read_note(_note(repository, commit))
    whole = enough(snapshot) if noted is None else all((snapshot / name).is_file() for name in noted)
    return Snapshot(snapshot, commit) if whole else None


def fetch_snapshot(
    repository: str,
    revision: str | None,
    choose: Callable[[Sequence[str]], Sequence[str]],
    reporter: Reporter,
    remedy: str,
) -> Snapshot:
    """Download what `choose` takes of the names of a repository's files; what is there already is left alone.

    Raises:
        UnknownNameError: there is no such repository; the nearest names are in the message.
        DatasetError: it cannot be had, or a file is not what the Hub says it is. `remedy` ends the message.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with offline_if_unreachable():
        try:
            info = HfApi().dataset_info(repository, revision=revision, files_metadata=True)
        except RevisionNotFoundError:
            raise DatasetError(
                f"{repository} has no revision {revision!r}; leave --revision out for the newest"
            ) from None
        except RepositoryNotFoundError as error:
            near = _similar_repositories(repository)
            if near:
                raise UnknownNameError("dataset repository", repository, (), near=near) from None
            raise _failure(repository, error, remedy) from None
        except client_errors() as error:
            raise _failure(repository, error, remedy) from None
        files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        chosen = list(choose(list(files)))
        commit = info.sha or MAIN
        try:
            _Download(repository, revision or MAIN, commit, reporter).run([files[name] for name in chosen])
        except client_errors() as error:
            if isinstance(error, DatasetError):
                raise
            raise _failure(repository, error, remedy) from None
    note = _note(repository, commit)
    earlier = _read_note(note) or ()
    note.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(note, {"files": sorted({*earlier, *chosen})})
    return Snapshot(hub_folder(repository) / "snapshots" / commit, commit)


def _note(repository: str, commit: str) -> Path:
    return derived_path("hub", f"{repository}@{commit}", f"{repository.rpartition('/')[2]}.json")


def _read_note(note: Path) -> tuple[str, ...] | None:
    """Return the files that a note lists; None if there is no readable note."""
    if not note.is_file():
        return None
    try:
        return text_list(read_sealed(note), "files", str(note))
    except CacheError:
        return None


def _failure(repository: str, error: Exception, remedy: str) -> DatasetError:
    cause, todo = hub_problem(error, f"datasets/{repository}")
    return DatasetError(f"dataset {repository} could not be fetched ({cause}); {todo}{remedy}")


def _similar_repositories(repository: str) -> list[str]:
    """Return the names of repositories on the Hub that are like this one."""
    from huggingface_hub import HfApi

    name = repository.rpartition("/")[2]
    try:
        repositories = [
            info.id for info in HfApi().list_datasets(search=name[: max(4, len(name) * 2 // 3)], limit=100)
        ]
    except client_errors():  # the answer is only a hint
        return []
    return (
        similar_names(repository, repositories)
        or [candidate for candidate in repositories if similar_names(name, [candidate.rpartition("/")[2]])][
            :3
        ]
    )


class _Download:
    """Download of some files of one commit."""

    def __init__(self, repository: str, revision: str, commit: str, reporter: Reporter) -> None:
        self._repository = repository
        self._revision = revision
        self._commit = commit
        self._reporter = reporter
        self._stop = Event()
        self._lock = Lock()
        self._bytes = 0
        self._limit: int | None = None

    def run(self, files: "Sequence[RepoSibling]") -> None:
        """Fetch them, the smallest first: what a repository says of itself comes before its shards."""
        ordered = sorted(files, key=lambda file: file.size or 0)
        total = sum(file.size or 0 for file in ordered)
        if all(file.size is not None for file in ordered):
            self._limit = 2 * total + SLACK_BYTES
        with self._reporter.progress("downloading", "MB") as update, ThreadPoolExecutor(THREADS) as pool:
            counter = self._counter(update, total)
            try:
                # Under the name of the revision, so that the client remembers which commit that was.
                for file in ordered[:1]:
                    self._fetch_file(file, self._revision, counter)
                for done in [pool.submit(self._fetch_file, file, self._commit, counter) for file in ordered]:
                    done.result()
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)

    def _fetch_file(self, file: "RepoSibling", revision: str, counter: type[Any]) -> None:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        known = try_to_load_from_cache(
            self._repository, file.rfilename, repo_type="dataset", revision=self._commit
        )
        if isinstance(known, str):
            return
        # The client before 1.2 reports to nobody; a file then counts when it is there.
        reports = "tqdm_class" in inspect.signature(hf_hub_download).parameters
        options: dict[str, Any] = {"tqdm_class": counter} if reports else {}
        path = Path(
            hf_hub_download(
                self._repository, file.rfilename, repo_type="dataset", revision=revision, **options
            )
        )
        if not reports:
            counter().update(file.size)
        if not _is_intact(path, file):
            # Remove both file and link, or the next run takes the file for intact. A target outside of the client's folder stays.
            blob = path.resolve()
            if blob.is_relative_to(hub_folder(self._repository).resolve()):
                blob.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise DatasetError(
                f"{self._repository}: {file.rfilename} is not what the Hub says it is (digest); run the same command again"
            )

    def _counter(self, update: Update, total: int) -> type[Any]:
        """Return the class of progress bars that the client reports to."""
        from tqdm import tqdm

        download = self

        class Counter(tqdm):  # type: ignore[misc]  # tqdm has no types
            def __init__(self, *arguments: Any, **options: Any) -> None:
                options.pop("name", None)
                super().__init__(*arguments, **(options | {"disable": True}))
                self.update(options.get("initial", 0))

            def update(self, n: float | None = 1) -> bool | None:
                if download._stop.is_set():
                    raise InterruptedError("stopped")
                with download._lock:
                    download._bytes += int(n or 0)
                    if download._limit is not None and download._bytes > download._limit:
                        download._stop.set()
                        raise DatasetError(
                            f"{download._repository}: more bytes arrive than the Hub lists ({total}); "
                            "see whether HF_ENDPOINT is the right address"
                        )
                    update(download._bytes // MB, max(total // MB, 1))
                return None

        return Counter


def _is_intact(path: Path, file: "RepoSibling") -> bool:
    """Return whether a file has the digest that the Hub lists: SHA-256 of large files, git's SHA-1 of small ones."""
    if file.size is not None and path.stat().st_size != file.size:
        return False
    if file.lfs is not None:
        return sha256_file(path) == file.lfs.sha256
    if file.blob_id is None:
        return True
    content = path.read_bytes()
    return (
        hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == file.blob_id
    )
