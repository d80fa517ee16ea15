"""`featcache.verify`: every byte of a cache against its digests, and some rows against the backbone."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, fields, frozen

from featcache.api.signatures import takes_parameters_of
from featcache.api.types import CacheName, PathLike, Roots, roots_of, text_of
from featcache.recompute.request import RecomputeRequest
from featcache.store.catalogue import completed_last, report_unreadable, select
from featcache.store.checking.repair import RepairResult
from featcache.store.checking.repair import repair as repair_files
from featcache.store.checking.verify import Verification
from featcache.store.checking.verify import verify as verify_files
from featcache.store.corrections import warnings_of
from featcache.store.errors import CacheError, FeatcacheError, RequestError
from featcache.store.files import JsonObject, read_sealed
from featcache.store.manifest import MANIFEST_FILE
from featcache.store.parameters import PROGRESS, parameter
from featcache.store.progress import Reporter
from featcache.store.provenance import PROVENANCE_FILE
from featcache.terminal.console import ConsoleReporter, format_size

if TYPE_CHECKING:
    from featcache.recompute.outcome import Recomputation


@dataclass(frozen=True)
class CacheCheck:
    """Result of verifying one cache, with repair and recomputation if requested."""

    files: Verification
    """Damages of the files; after a repair that fetched files again, those that are left."""
    repair: RepairResult | None = None
    """Blocks that a repair dropped; None if there was nothing to repair."""
    recomputation: "Recomputation | None" = None
    """Comparison of some rows with the backbone, if it was asked for."""

    @property
    def path(self) -> Path:
        """Folder of the cache."""
        return self.files.directory

    @property
    def passed(self) -> bool:
        """Whether the cache is complete and intact, now that what could be repaired is, and agrees with the backbone."""
        whole = self.repair.whole if self.repair else self.files.intact
        return whole and (self.recomputation is None or self.recomputation.agrees)

    @property
    def warnings(self) -> list[str]:
        """Corrections in later versions of featcache that concern the values of this cache."""
        manifest = self.files.manifest
        if manifest is None:
            return []
        try:
            provenance = read_sealed(self.path / PROVENANCE_FILE)
        except (OSError, CacheError):
            provenance = {}
        return warnings_of(manifest.spec, manifest.inventory.targets, provenance)

    def to_dict(self) -> JsonObject:
        """Return everything as plain JSON values, as ``featcache verify --json`` prints it."""
        return {
            **self.files.to_dict(),
            "repair": self.repair.to_dict() if self.repair else None,
            "recompute": self.recomputation.to_dict() if self.recomputation else None,
            "warnings": self.warnings,
        }


_RECOMPUTATION = fields(RecomputeRequest)


@frozen(kw_only=True)
class VerifyCall:
    """A call of `featcache.verify`."""

    cache: CacheName | None = field(
        default=None,
        kw_only=False,
        metadata=parameter(
            "Open cache; or its folder, its key or the beginning of one, or DATASET/MODEL-KEY.",
            python_only="CACHE is an argument",
            default="the cache that was completed last",
        ),
    )
    repair: bool = field(
        default=False,
        metadata=parameter(
            "Fetch what is damaged again where the cache was pulled from; else drop it, for the next extract to redo.",
            "--repair",
        ),
    )
    threads: int | None = field(
        default=None, metadata=parameter("Files read at the same time.", "--threads", default="by cores")
    )
    recompute: int | None = field(default=None, metadata=_RECOMPUTATION.samples.metadata)
    dtype_loss: bool = field(default=False, metadata=_RECOMPUTATION.dtype_loss.metadata)
    dataset: str | None = field(default=None, metadata=_RECOMPUTATION.dataset.metadata)
    data: PathLike | None = field(default=None, metadata=_RECOMPUTATION.data.metadata)
    model: str | None = field(default=None, metadata=_RECOMPUTATION.model.metadata)
    weights: PathLike | None = field(default=None, metadata=_RECOMPUTATION.weights.metadata)
    trust_remote_code: bool = field(default=False, metadata=_RECOMPUTATION.trust_remote_code.metadata)
    seed: int = field(default=_RECOMPUTATION.seed.default, metadata=_RECOMPUTATION.seed.metadata)
    device: str = field(default=_RECOMPUTATION.device.default, metadata=_RECOMPUTATION.device.metadata)
    root: Roots = field(
        default=(),
        metadata=parameter(
            "Root, or several, that the cache is looked for in.", "--root", default="FEATCACHE_ROOT"
        ),
    )
    progress: bool = field(default=True, metadata=PROGRESS)

    @property
    def recomputation(self) -> RecomputeRequest | None:
        """The rows to recompute, and with what; None for no recomputation.

        Raises:
            RequestError: an argument has no effect without `recompute` or `dtype_loss`, or the request is wrong.
        """
        given = {
            field.name: value
            for field in fields(VerifyCall)
            if hasattr(_RECOMPUTATION, field.name) and (value := getattr(self, field.name)) != field.default
        }
        if self.recompute is not None:
            given["samples"] = self.recompute
        if self.recompute is not None or self.dtype_loss:
            return RecomputeRequest(**given)
        if given:
            option = next(iter(given)).replace("_", "-")
            raise RequestError(f"--{option} is for --recompute; give --recompute K as well")
        return None


@takes_parameters_of(VerifyCall)
def verify(call: VerifyCall) -> CacheCheck:
    """Check every byte of a cache against the digests that were taken while it was written.

    Damages raise no error: they are in the result, whose `CacheCheck.passed` tells whether there is any.

    Raises:
        CacheNotFoundError: there is no cache; the message lists what there is.
        RequestError: several caches match; arguments do not go together; or the dataset or the weights to recompute with
            are not those of the cache.
        CacheBusyError: somebody else is working on a cache that is to be repaired.
        CacheError: the damage cannot be repaired.

    Example:
        >>> featcache.verify("0123456789ab").passed  # doctest: +SKIP
        True
    """
    request = call.recomputation
    search, reporter = roots_of(call.root), ConsoleReporter(quiet=not call.progress)
    if call.cache is None:
        report_unreadable(search, reporter)
    folder = directory_of(search, None if call.cache is None else text_of(call.cache), exact=call.repair)
    return check_cache(folder, repair=call.repair, threads=call.threads, request=request, reporter=reporter)


def directory_of(search: list[Path], cache: str | None, *, exact: bool) -> Path:
    """Return the folder of a cache; one that is named need not hold a manifest that can be read."""
    if cache and (Path(cache) / MANIFEST_FILE).is_file():
        return Path(cache).resolve()
    return (select(search, cache, exact=exact) if cache else completed_last(search)).path


def check_cache(
    folder: Path,
    *,
    repair: bool,
    threads: int | None,
    request: RecomputeRequest | None,
    reporter: Reporter,
    resilient: bool = False,
) -> CacheCheck:
    """Check the cache in a folder, and repair or recompute it as asked.

    Args:
        folder: of the cache.
        repair: whether to repair what is damaged.
        threads: files read at the same time; by cores if not given.
        request: rows to recompute, and with what; None for no recomputation.
        reporter: receives messages and progress.
        resilient: report that a cache cannot be repaired instead of raising, since further caches are to be checked.
    """
    found = verify_files(folder, threads=threads, reporter=reporter)
    repaired = None
    if repair and found.damages:
        found, repaired = _repair(found, threads, resilient, reporter)
    recomputed = _recompute(found, request, reporter) if request else None
    return CacheCheck(found, repaired, recomputed)


def _repair(
    found: Verification, threads: int | None, resilient: bool, reporter: Reporter
) -> tuple[Verification, RepairResult | None]:
    """Fetch the damaged files of a copy from its origin, so that it stays usable; else drop damaged blocks."""
    from featcache.store.transfer.repair import repair_copy

    try:
        fetched = repair_copy(found, reporter)
        if fetched is None:
            return found, repair_files(found)
        reporter.message(
            f"fetched again from {fetched.origin}: {fetched.files} files of data, {format_size(fetched.num_bytes)} in all"
        )
        found = verify_files(found.directory, threads=threads, reporter=reporter)
        # The remaining damages concern files that the remote does not have, such as unexpected files.
        return found, repair_files(found) if found.damages else None
    except FeatcacheError as error:
        if not resilient:
            raise
        reporter.message(str(error))
        return found, None


def _recompute(found: Verification, request: RecomputeRequest, reporter: Reporter) -> "Recomputation | None":
    if found.damages:
        reporter.message("not recomputed: the files are damaged")
        return None
    from featcache.recompute.run import recompute  # torch: seconds
    from featcache.store.reading.reader import open_cache

    return recompute(open_cache(found.directory, allow_partial=True), request, reporter)
