"""Log odds from outputs that only rank samples: the maximum of a likelihood, whatever the outputs are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.probing.scoring.calibration import LEAST_SLOPE, fit_sigmoids


def smoothed(targets: torch.Tensor) -> torch.Tensor:
    """What the source counts samples as."""
    number = targets.double().sum(0)
    return torch.where(targets > 0, (number + 1) / (number + 2), 1 / (len(targets) - number + 2))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(2, 60),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    share=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    signal=st.sampled_from([-1.0, 0.0, 0.3, 50.0]),
)
def test_the_likelihood_is_at_its_maximum(seed, rows, scale, share, signal):
    rng = np.random.default_rng(seed)
    targets = torch.from_numpy((rng.random((rows, 3)) < share).astype(np.float32))
    outputs = torch.from_numpy(scale * (rng.normal(size=(rows, 3)) + 1)).float() + scale * signal * targets
    slope, offset = fit_sigmoids(outputs, targets)
    assert bool(slope.isfinite().all())
    assert bool((slope > 0).all()), "no ranking changes"
    standard = (outputs.double() - outputs.double().mean(0)) / outputs.double().std(0, correction=0)
    error = (outputs.double() * slope + offset).sigmoid() - smoothed(targets)
    assert error.mean(0).abs().max() < 3e-3
    # Uphill, or as far down as it goes.
    free = slope * outputs.double().std(0, correction=0) > 3 * LEAST_SLOPE
    assert (error * standard).mean(0)[free].abs().max() < 3e-3 if bool(free.any()) else True
    assert (error * standard).mean(0).min() > -3e-3


def test_least_squares_of_label_sets_become_probabilities():
    rng = np.random.default_rng(0)
    targets = torch.from_numpy((rng.random((4000, 2)) < 0.1).astype(np.float32))
    log_odds = torch.from_numpy(rng.normal(size=(4000, 2))).float() + 3 * targets
    slope, offset = fit_sigmoids(0.05 * log_odds + 0.2, targets)
    probabilities = ((0.05 * log_odds + 0.2) * slope + offset).sigmoid()
    likely = probabilities > 0.8
    assert targets[likely].mean() == pytest.approx(float(probabilities[likely].mean()), abs=0.05)
