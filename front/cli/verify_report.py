"""The report of `featcache verify` on one cache."""

from typing import TYPE_CHECKING

from featcache.api.verification import CacheCheck
from featcache.store.checking.repair import RepairResult
from featcache.store.checking.verify import Verification
from featcache.store.reading.dtype_loss import describe_loss
from featcache.store.reading.reader import extraction_command
from featcache.terminal.console import echo, format_size, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featcache.recompute.outcome import Recomputation
    from featcache.store.reading.dtype_loss import LayerLoss

OF_PASS = "of it by the pass"
LOSS_COLUMNS = ("array", "layer", "token", "mean loss", "largest loss", OF_PASS, "clipped")
COLUMNS = ("split", "array", "layer", "largest absolute", "largest relative")


def show(check: CacheCheck) -> None:
    """Print one line for each damage, then the summary."""
    found = check.files
    for damage in found.damages:
        echo(str(damage))
    if check.recomputation:
        _show_recomputation(check.recomputation)
        show_losses(check.recomputation.losses, check.recomputation.samples)
    echo(f"{found.directory}: {_summary(found)}")
    for warning in check.warnings:
        echo(f"{found.directory}: {warning}")
    if check.repair:
        echo(_describe_repair(found, check.repair))
    elif found.damages:
        echo(found.remedy)


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
    # The loss has a table of its own, with the same layers.
    rows = (
        []
        if done.losses
        else [
            [d.split, d.array, d.layer, f"{d.largest_absolute:.3g}", f"{d.largest_relative:.3g}"]
            for d in done.differences
        ]
    )
    if rows:
        print_table(COLUMNS, rows, numeric=COLUMNS[3:])
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


def show_losses(losses: "Sequence[LayerLoss]", samples: int, *, of_pass: bool = True) -> None:
    """Print the loss of the stored type in every layer and token kind, and the whole in one line.

    Args:
        losses: the losses; nothing is printed if there are none.
        samples: number of samples that they were measured on.
        of_pass: whether to show the part that comes from the pass.
    """
    if not losses:
        return
    columns = [column for column in LOSS_COLUMNS if of_pass or column != OF_PASS]
    rows = [
        [
            *(
                loss.array,
                loss.layer,
                loss.token,
                f"{loss.mean_relative:.3g}",
                f"{loss.largest_relative:.3g}",
            ),
            *([f"{loss.pass_relative:.3g}"] if of_pass else []),
            f"{loss.clipped:.2g}",
        ]
        for loss in losses
    ]
    print_table(columns, rows, numeric=columns[3:])
    echo(describe_loss(losses, samples))
