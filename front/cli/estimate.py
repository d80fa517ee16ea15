"""What ``featcache extract --dry-run`` prints."""

from collections.abc import Iterator

from featcache.cli.array_lines import array_lines, view_lines
from featcache.extraction.planning.estimate import COMPLETE, LACKING, UNFINISHED, Estimate
from featcache.terminal.console import echo, format_duration, format_size, print_json


def print_estimate(estimate: Estimate, as_json: bool) -> None:
    """Print what an extraction would do."""
    if as_json:
        print_json(estimate.to_dict())
        return
    for line in _lines(estimate):
        echo(line)


def _lines(estimate: Estimate) -> Iterator[str]:
    left, (free, place) = estimate.remaining, estimate.space
    yield str(estimate.path)
    yield f"key       {estimate.key}"
    yield f"state     {_state(estimate)}"
    inventory = estimate.inventory.to_dict()
    for name, split in inventory["splits"].items():
        yield f"{name:<10}{split['num_samples']} samples"
        yield from array_lines(split["arrays"])
    yield from view_lines(inventory.get("views", {}))
    yield f"size      {format_size(estimate.inventory.num_bytes)}, {format_size(left.num_bytes)} of it to be written"
    if estimate.state != COMPLETE:
        verdict = "it fits" if estimate.fits else "it does not fit"
        yield f"free      {format_size(free)} at {place}: {verdict}"
    if estimate.speed is not None and estimate.seconds is not None:
        speed, computed = estimate.speed, max(0, left.samples - estimate.reused)
        yield (
            f"time      about {format_duration(estimate.seconds)}: {computed} images at "
            f"{speed.images_per_second:.1f} images/s, on {speed.device} in {speed.precision}, {speed.batch_size} at a time"
        )
    yield "nothing was written"


def _state(estimate: Estimate) -> str:
    if estimate.state == COMPLETE:
        return "complete: already cached"
    if estimate.state == LACKING:
        lacking = "; ".join(
            f"{split.name}: {', '.join(a.name for a in split.arrays.values() if a.layers)}"
            for split in estimate.lacking.splits.values()
        )
        return f"complete, but lacks {lacking}"
    if estimate.state == UNFINISHED:
        left = estimate.remaining
        total = left.committed + left.samples
        return f"incomplete: {left.committed} of {total} samples are committed"
    return "not there yet"
