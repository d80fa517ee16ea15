"""Whether a head is as sure as it is right: accuracy of the test samples by how probable their prediction is."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from featcache.probing.plots.style import NEUTRAL, PALETTE, new_figure, style
from featcache.probing.scoring.wilson import wilson_interval

NUM_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Predictions in bins of equal width by their probability; bins without samples are NaN."""

    edges: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    """Mean probability of each bin's predictions."""
    accuracy: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    unknown: int = 0
    """Number of samples whose prediction has no probability, as after a training that diverged; they are in no bin."""
    runs: int = 1
    """Number of runs whose predictions for the same samples are counted together: they are no further samples."""

    @property
    def intervals(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Ends of Wilson's 95 % intervals of the accuracy of each bin; NaN for bins without samples."""
        ends = [
            wilson_interval(float(share), count / self.runs) if count else (np.nan, np.nan)
            for share, count in zip(self.accuracy, self.counts, strict=True)
        ]
        low, high = np.array(ends).T
        return low, high

    @property
    def expected_error(self) -> float | None:
        """Expected calibration error: the gap between both, averaged over samples (Naeini et al. 2015; Guo et al. 2017).

        None if no sample has a probability.
        """
        if not self.counts.any():
            return None
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.counts) / self.counts.sum())


def reliability(
    probability: npt.NDArray[np.float64], hit: npt.NDArray[np.bool_], num_bins: int = NUM_BINS, runs: int = 1
) -> Reliability:
    """Bin predictions.

    Args:
        probability: ``[N]``, probability of the predicted class; NaN if there is none.
        hit: ``[N]``, whether it is the label.
        num_bins: bins from 0 to 1; each holds its upper edge.
        runs: runs that the predictions are of, each for the same samples.
    """
    known = np.isfinite(probability)
    unknown, probability, hit = int((~known).sum()), probability[known], hit[known]
    edges = np.linspace(0, 1, num_bins + 1)
    place = np.clip(np.ceil(probability * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, probability, num_bins) / counts
        accuracy = np.bincount(place, hit.astype(np.float64), num_bins) / counts
    return Reliability(edges, confidence, accuracy, counts, unknown, runs)


def calibration_figure(found: Reliability, title: str) -> Figure:
    """Draw accuracy against probability, and below how many samples each bin has."""
    with style():
        title += _words(found)
        figure = new_figure(3.2, 3.0, title)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        filled = found.counts > 0
        confidence, accuracy = 100 * found.confidence[filled], 100 * found.accuracy[filled]
        above.plot([0, 100], [0, 100], color=NEUTRAL, linewidth=0.8, linestyle="--", label="as sure as right")
        above.vlines(
            confidence,
            np.minimum(confidence, accuracy),
            np.maximum(confidence, accuracy),
            color=PALETTE[1],
            linewidth=1.2,
            label="gap",
        )
        low, high = (100 * end[filled] for end in found.intervals)
        above.vlines(confidence, low, high, color=PALETTE[0], linewidth=0.7, label="95 % over test images")
        above.plot(confidence, accuracy, marker="o", markersize=3.5, color=PALETTE[0], label="accuracy")
        above.set_ylabel("accuracy, %")
        above.set_ylim(-3, 103)
        # Intervals may reach under the legend wherever it lies.
        above.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none")
        centres = 50 * (found.edges[1:] + found.edges[:-1])
        below.bar(
            centres,
            100 * found.counts / max(1, found.counts.sum()),
            width=90 / len(centres),
            color=PALETTE[0],
        )
        below.set_ylabel("samples, %")
        below.set_xlabel("probability of the predicted class, %")
        below.set_xlim(0, 100)
        return figure


def _words(found: Reliability) -> str:
    """Return the lines of the title with the results."""
    error = found.expected_error
    total = int(found.counts.sum()) + found.unknown
    line = "no value" if error is None else f"{100 * error:.1f} %"
    line = f"\nexpected calibration error {line}"
    if found.unknown:
        line += (
            f"\n{found.unknown:,} of {total:,} predictions have no probability: outputs that are no numbers"
        )
    return line
