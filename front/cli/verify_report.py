"""The report of `featcache verify` on one cache."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from featcache.store.checking.repair import RepairResult
from featcache.store.checking.verify import Verification
from featcache.store.corrections import warnings_of
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, read_sealed
from featcache.store.provenance import PROVENANCE_FILE
from featcache.store.reading.reader import extraction_command
from featcache.terminal.console import echo, format_size, print_table

if TYPE_CHECKING:
    from featcache.recompute.outcome import Recomputation

COLUMNS = ("split", "array", "layer", "largest absolute", "largest relative")


@dataclass(frozen=True)
class Checked:
    """Result of verifying one cache, with repair and recomputation if requested."""

    found: Verification
    repaired: RepairResult | None
    recomputed: "Recomputation | None"

    @property
    def passed(self) -> bool:
        """Whether the cache is whole, now that what could be repaired is."""
        whole = self.repaired.whole if self.repaired else self.found.intact
        return whole and (self.recomputed is None or self.recomputed.agrees)

    def to_dict(self) -> JsonObject:
        """Return everything as plain JSON values."""
        return {
            **self.found.to_dict(),
            "repair": self.repaired.to_dict() if self.repaired else None,
            "recompute": self.recomputed.to_dict() if self.recomputed else None,
            "warnings": self.warnings,
        }

    @property
    def warnings(self) -> list[str]:
        """Corrections that concern the cache and came after it."""
        manifest = self.found.manifest
        if manifest is None:
            return []
        try:
            provenance = read_sealed(self.found.directory / PROVENANCE_FILE)
        except (OSError, CacheError):
            provenance = {}
        return warnings_of(manifest.spec, manifest.inventory.targets, provenance)

    def show(self) -> None:
        """Print one line for each damage, then the summary."""
        for damage in self.found.damages:
            echo(str(damage))
        if self.recomputed:
            _show_recomputation(self.recomputed)
        echo(f"{self.found.directory}: {_summary(self.found)}")
        for warning in self.warnings:
            echo(f"{self.found.directory}: {warning}")
        if self.repaired:
            echo(_describe_repair(self.found, self.repaired))
        elif self.found.damages:
            echo(self.found.remedy)


def _summary(verification: Verification) -> str:
    state = "intact"
    if verification.damages:
        count = len(verification.damages)
        state = f"{count} file{'s' if count > 1 else ''} damaged, missing or out of place"
    elif not verification.complete and verification.manifest:
        total = len(verification.manifest.inventory.blocks())
        state = f"incomplete, {len(verification.missing_blocks)} of {total} blocks are missing, what is committed is intact"
    speed = format_size(verification.num_bytes / max(verification.seconds, 1e-9))
    return f"{state}; {verification.files} files, {format_size(verification.num_bytes)} in {verification.seconds:.1f} s ({speed}/s)"


def _describe_repair(verification: Verification, done: RepairResult) -> str:
    left = f"; left as found: {', '.join(done.unexpected_files[:5])}" if done.unexpected_files else ""
    blocks = "1 block" if len(done.dropped) == 1 else f"{len(done.dropped)} blocks"
    if done.complete:
        return f"repaired, the cache is complete{left}"
    assert verification.manifest is not None  # else there was nothing to repair
    command = extraction_command(verification.directory, verification.manifest)
    verb = "imported" if command.endswith("import") else "extracted"
    return (
        f"dropped; run the same `{command}` again: {done.samples} samples in {blocks} are to be {verb}{left}"
    )


def _show_recomputation(done: "Recomputation") -> None:
    rows = [
        [d.split, d.array, d.layer, f"{d.largest_absolute:.3g}", f"{d.largest_relative:.3g}"]
        for d in done.differences
    ]
    print_table(
        COLUMNS,
        rows,
        numeric=COLUMNS[3:],
    )
    for text in done.other_samples:
        echo(text)
    verdict = (
        "agrees"
        if done.agrees
        else "DIFFERS: other weights, other preprocessing or forged data; do not use it, extract it again"
    )
    echo(
        f"{done.samples} samples recomputed: largest relative difference {done.largest_relative:.3g}, "
        f"tolerance {done.tolerance:.3g}: {verdict}"
    )
