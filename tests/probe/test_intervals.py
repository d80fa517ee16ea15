"""Intervals of scores over test samples, and differences over the same test images."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, spearmanr
from sklearn.metrics import average_precision_score, f1_score, r2_score
from torch.nn import functional as F

from featcache.probing.report.groups import group_rows
from featcache.probing.report.paired_images import ERROR_SCORES, PairedImages, difference, image_weights
from featcache.probing.results.predictions import PREDICTIONS_FILE, save_predictions
from featcache.probing.scoring import bootstrap
from featcache.probing.scoring.intervals import score_intervals
from featcache.probing.scoring.tasks import MultiLabel, Regression, SingleLabel
from featcache.probing.scoring.wilson import balanced_accuracy_interval, wilson_interval

from .intervals import score_interval
from .result_rows import made_row

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("right", "number"), [(0, 5), (1, 1), (7, 10), (500, 500), (333, 1000)])
def test_wilson_is_scipys(right, number):
    expected = binomtest(right, number).proportion_ci(method="wilson")
    assert wilson_interval(right / number, number) == pytest.approx((expected.low, expected.high))
    # One class is a plain share.
    assert balanced_accuracy_interval(np.array([right]), np.array([number]))[0] <= right / number


@pytest.mark.parametrize("samples", [1, 2, 5, 40])
@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_intervals_of_balanced_accuracy_cover_whatever_the_size_of_classes(samples, spread):
    """The class-by-class bootstrap of before has no width with one sample a class, and two thirds of its width with three."""
    recalls = np.linspace(0.7 - spread, 0.7 + spread, 60)
    counts = np.full(60, samples)
    held = []
    for _ in range(300):
        low, high = balanced_accuracy_interval(RNG.binomial(counts, recalls), counts)
        held.append(low <= recalls.mean() <= high)
    assert np.mean(held) >= 0.91


def test_a_class_of_two_images_among_large_ones_makes_the_interval_wide():
    narrow = balanced_accuracy_interval(np.array([450, 450, 450]), np.array([500, 500, 500]))
    for right in (0, 1, 2):
        low, high = balanced_accuracy_interval(np.array([right, 450, 450]), np.array([2, 500, 500]))
        assert high - low > 5 * (narrow[1] - narrow[0]), "nothing tells what the recall of such a class is"
    left_out = balanced_accuracy_interval(np.array([0, 450, 450, 450]), np.array([0, 500, 500, 500]))
    assert left_out == narrow


@pytest.mark.parametrize("hits", [0, 10])
def test_all_right_or_all_wrong_is_no_certainty(hits):
    labels = torch.arange(10) % 5
    predicted = labels if hits else (labels + 1) % 5
    low, high = score_interval(F.one_hot(predicted, 5).double(), labels, SingleLabel(5))
    assert high - low > 0.25
    assert (low, high)[bool(hits)] == hits / 10
    # Of two images a class, seventy in a hundred right was an interval without width.
    hit = torch.arange(10) < 7
    low, high = score_interval(
        F.one_hot(torch.where(hit, labels, 4 - labels), 5).double(), labels, SingleLabel(5)
    )
    assert low < 0.6 < 0.8 < high


def drawn(number: int) -> np.ndarray:
    return np.stack(
        [np.bincount(RNG.integers(0, number, number), minlength=number) for _ in range(5)]
    ).astype(float)


def resampled(counts: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts.astype(int))


def test_scores_of_resampled_samples_are_scikit_learns():
    outputs, actual = np.round(RNG.normal(size=(60, 4)), 1), RNG.random((60, 4)) < 0.3  # with ties
    numbers = 3 + 2 * RNG.normal(size=(60, 2))
    numbers[:, 1] = np.round(numbers[:, 1])
    near = np.round(numbers + RNG.normal(size=(60, 2)), 1)
    counts = drawn(60)
    precisions = bootstrap.mean_average_precisions(outputs, actual)(counts)
    macro = bootstrap.macro_f1_scores(outputs > 0, actual, present_only=True)(counts)
    micro = bootstrap.micro_f1_scores(outputs > 0, actual)(counts)
    r2 = bootstrap.r2_scores(near, numbers)(counts)
    ranks = bootstrap.rank_correlations(near, numbers)(counts)
    for index, row in enumerate(counts):
        rows = resampled(row)
        guessed, has = outputs[rows], actual[rows]
        assert precisions[index] == pytest.approx(
            np.mean([average_precision_score(has[:, label], guessed[:, label]) for label in range(4)])
        )
        assert macro[index] == pytest.approx(f1_score(has, guessed > 0, average="macro"))
        assert micro[index] == pytest.approx(f1_score(has, guessed > 0, average="micro"))
        assert r2[index] == pytest.approx(r2_score(numbers[rows], near[rows]))
        expected = [spearmanr(numbers[rows, column], near[rows, column])[0] for column in range(2)]
        assert ranks[index] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (SingleLabel(7), torch.randn(80, 7), torch.arange(80) % 7),
        (MultiLabel(3), torch.randn(80, 3), (torch.rand(80, 3) < 0.4).float()),
        (Regression(2), torch.randn(80, 2), torch.randn(80, 2)),
    ],
    ids=["single-label", "multi-label", "regression"],
)
def test_every_score_has_an_interval_around_it(task, outputs, targets):
    report = task.scores(outputs, targets)
    found = score_intervals(outputs, targets, task, report)
    assert {*report.scores} - {*found} <= {"ece"}, "resampled samples are calibrated worse than the samples"
    for name, (low, high) in found.items():
        assert low <= report.scores[name] <= high, name
        assert low < high, name
    assert score_intervals(outputs[:1], targets[:1], task, task.scores(outputs[:1], targets[:1])).keys() <= {
        "balanced_accuracy",
        "top1",
    }


def test_data_too_large_to_resample_have_no_interval(monkeypatch):
    monkeypatch.setattr(bootstrap, "MOST_VALUES", 1000)
    labels = (torch.rand(80, 3) < 0.4).float()
    outputs = torch.randn(80, 3)
    assert score_intervals(outputs, labels, MultiLabel(3), MultiLabel(3).scores(outputs, labels)).keys() == {
        "nll"
    }


@pytest.mark.parametrize(("ours", "theirs", "both"), [(12, 3, 40), (5, 5, 10), (0, 0, 20), (1, 0, 5)])
def test_with_one_seed_and_equal_classes_the_test_is_mcnemars(ours, theirs, both):
    differences = np.array([1.0] * ours + [-1.0] * theirs + [0.0] * both)
    found = difference(differences, np.full(len(differences), 1 / len(differences)))
    assert found.mean == pytest.approx((ours - theirs) / len(differences))
    expected = binomtest(ours, ours + theirs).pvalue if ours + theirs else 1.0
    assert found.p_value == pytest.approx(expected)
    assert found.low < found.mean < found.high, (
        "heads that agree on every image have an interval with a width"
    )


def test_flipped_signs_agree_with_all_flips():
    parts = np.array([1.0, -0.5, 1.0, 1.0, 0.5, -1.0, 1.0, 0.5])
    weights = image_weights(list("aaabbbbb"), balanced=True)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] * 3 == pytest.approx(weights[-1] * 5)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    sums = np.abs(signs @ np.abs(parts * weights))
    exact = np.mean(sums >= abs((parts * weights).sum()) - 1e-12)
    assert difference(parts, weights).p_value == pytest.approx(exact, abs=0.02)
    many = RNG.choice([-1.0, -0.5, 0.5, 1.0], 3000, p=[0.24, 0.25, 0.25, 0.26])
    few = difference(many[:900], np.full(900, 1 / 900)), difference(many, np.full(3000, 1 / 3000))
    assert all(0 < one.p_value <= 1 for one in few)


def test_intervals_of_differences_cover():
    held = []
    for _ in range(300):
        ours, theirs = RNG.random(150) < 0.8, RNG.random(150) < 0.7
        found = difference(ours.astype(float) - theirs, np.full(150, 1 / 150))
        held.append(found.low <= 0.1 <= found.high)
    assert np.mean(held) >= 0.92


@pytest.mark.parametrize("score", ERROR_SCORES)
def test_differences_of_real_values_are_paired_by_image(tmp_path, score):
    targets = 5 + RNG.normal(size=(80, 2)).astype(np.float32)
    shared = RNG.normal(size=(80, 2))
    rows, task = [], Regression(2)
    for name, noise in (("near", 0.5), ("far", 0.8)):
        predicted = (targets + noise * shared).astype(np.float32)
        (tmp_path / name).mkdir()
        ids = [str(index) for index in range(80)]
        save_predictions(
            tmp_path / name / PREDICTIONS_FILE, ids, targets, predicted, ["a", "b"], "regression"
        )
        scores = task.scores(torch.from_numpy(predicted), torch.from_numpy(targets)).scores
        how = {"target_kind": "regression", "metric": "r2", "scores": scores, "folder": name}
        rows.append(made_row(scores["r2"], head=name, **how))
    near, far = group_rows(rows, score)
    found = PairedImages(tmp_path).compare(near, far)
    assert found.mean == pytest.approx(near.mean - far.mean, rel=1e-4)
    assert found.low < found.mean < found.high
    assert (found.mean > 0) == (score == "r2"), "less error is better"
    assert found.p_value < 0.01
    (tmp_path / "far" / PREDICTIONS_FILE).unlink()
    assert PairedImages(tmp_path).compare(near, far) is None
