"""Kinds of targets: what is recognised and refused, losses and scores against scikit-learn's, and input transforms."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_score,
    r2_score,
)
from torch.nn import functional as F

from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.inputs.transforms import InputTransform, OutputScale, fit_input_transform
from featcache.probing.scoring.losses import CrossEntropy, absolute_error, binary_cross_entropy, squared_error
from featcache.probing.scoring.metrics import calibration_error
from featcache.probing.scoring.tasks import MultiLabel, Regression, SingleLabel, make_task
from featcache.store.errors import RequestError, UnknownNameError

from .intervals import score_interval

RNG = np.random.default_rng(0)


def test_what_targets_are() -> None:
    labels = np.array([0, 2, 1], np.int32)
    task, targets = make_task(labels)
    assert (task, targets.dtype) == (SingleLabel(3), np.int64)
    assert make_task(labels, num_outputs=5)[0] == SingleLabel(5)
    sets = np.array([[0, 1], [1, 1]], np.uint8)
    task, targets = make_task(sets)
    assert (task, targets.dtype, targets.tolist()) == (MultiLabel(2), np.float32, [[0, 1], [1, 1]])
    task, targets = make_task(np.array([0.5, 2.5]), loss="mae")
    assert (task, targets.tolist()) == (Regression(1, "mae"), [[0.5], [2.5]])
    assert make_task(labels, "regression")[0] == Regression(1)
    assert make_task(sets.astype(float), "multi-label")[0] == MultiLabel(2)


@pytest.mark.parametrize(
    ("targets", "kind", "message"),
    [
        (np.array([0.5]), "single-label", r"class indices \(integers\), not float64"),
        (np.array([-1, 1]), None, "count from 0, but the labels run from -1 to 1"),
        (np.array([[0, 2]]), None, "multi-label targets must be 0 or 1"),
        (np.array([[0.5], [np.nan], [np.inf]]), None, "must be finite; 2 samples have others, the first is row 1"),
        (np.zeros((2, 0)), None, r"regression targets must be numbers of shape \[N, O\], not float64 of shape \(2, 0\)"),
        (np.array(["a"]), "regression", "must be numbers"),
        (np.zeros((2, 2), int), "single-label", r"class indices must be of shape \[N\], not \(2, 2\)"),
    ],
)  # fmt: skip
def test_wrong_targets(targets: np.ndarray, kind: str | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_task(targets, kind)


def test_wrong_names() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown kind of targets 'multilabel'; did you mean multi-label"
    ):
        make_task(np.array([1]), "multilabel")
    with pytest.raises(UnknownNameError, match="unknown regression loss 'mse2'; did you mean mse"):
        make_task(np.array([1.0]), loss="mse2")


def test_losses_by_member() -> None:
    outputs = torch.from_numpy(RNG.normal(size=(2, 7, 3)))
    labels, weights = torch.tensor([0, 1, 2, 2, 1, 0, 0]), torch.tensor([1.0, 2.0, 0.5])
    sets, numbers = torch.from_numpy(RNG.integers(0, 2, (7, 3))), torch.from_numpy(RNG.normal(size=(7, 3)))
    for member, one in enumerate(outputs):
        expected = {
            CrossEntropy(weights): (labels, F.cross_entropy(one, labels, weights.double())),
            binary_cross_entropy: (sets, F.binary_cross_entropy_with_logits(one, sets.double())),
            squared_error: (numbers, F.mse_loss(one, numbers)),
            absolute_error: (numbers, F.l1_loss(one, numbers)),
        }
        for loss, (targets, value) in expected.items():
            torch.testing.assert_close(loss(outputs, targets)[member], value)


def test_scores_of_single_labels() -> None:
    logits, labels = torch.from_numpy(RNG.normal(size=(200, 7))), torch.from_numpy(RNG.integers(0, 7, 200))
    report = SingleLabel(7).scores(logits, labels)
    predicted, probabilities = logits.argmax(1).numpy(), logits.softmax(1).numpy()
    assert report.scores["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert report.scores["nll"] == pytest.approx(log_loss(labels, probabilities, labels=range(7)))
    assert report.confusion == confusion_matrix(labels, predicted).tolist()
    precision = precision_score(labels, predicted, average=None)
    assert [row["precision"] for row in report.per_class] == pytest.approx(list(precision))
    assert [row["samples"] for row in report.per_class] == np.bincount(labels).tolist()
    recalls = [row["recall"] for row in report.per_class]
    assert report.scores["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert {"top1", "top5"} <= report.scores.keys()
    # A label that training did not know: found by no one, as likely as rounding allows.
    beyond = SingleLabel(2).scores(torch.tensor([[3.0, 0.0]]), torch.tensor([4]))
    assert beyond.scores["balanced_accuracy"] == 0
    assert beyond.scores["nll"] == pytest.approx(-np.log(np.finfo(np.float32).eps))
    assert beyond.per_class[4] == {"samples": 1, "recall": 0.0, "precision": None}


def test_calibration_error_by_hand() -> None:
    """Two bins of confidence: 0.9, of which half are right, and 0.6, of which all are."""
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]]).log()
    labels = torch.tensor([0, 1, 0, 0])
    assert calibration_error(logits, labels) == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)


def test_scores_of_label_sets() -> None:
    logits, sets = RNG.normal(size=(100, 4)), (RNG.random((100, 4)) < 0.3).astype(np.float32)
    sets[:, 3] = 0  # a class that test does not have
    report = MultiLabel(4).scores(torch.from_numpy(logits), torch.from_numpy(sets))
    precisions = [average_precision_score(sets[:, index], logits[:, index]) for index in range(3)]
    assert report.scores["mean_average_precision"] == pytest.approx(np.mean(precisions))
    assert report.per_class[3] == {"samples": 0, "average_precision": None}
    micro = f1_score(sets, logits > 0, average="micro")
    assert report.scores["micro_f1"] == pytest.approx(micro)
    macro = f1_score(sets[:, :3], logits[:, :3] > 0, average="macro")
    assert report.scores["macro_f1"] == pytest.approx(macro)


def test_label_sets_at_their_edges() -> None:
    """One class, in which scikit-learn would score its absence too; none that occurs; and outputs that are not numbers."""
    sets = torch.tensor([[1.0], [0.0], [0.0]])
    missed = MultiLabel(1).scores(-torch.ones(3, 1), sets).scores
    assert (missed["macro_f1"], missed["micro_f1"]) == (0, 0)
    found = MultiLabel(1).scores(2 * sets - 1, sets).scores
    assert (found["macro_f1"], found["micro_f1"]) == (1, 1)
    nothing = MultiLabel(2).scores(torch.zeros(3, 2), torch.zeros(3, 2)).scores
    assert nothing["mean_average_precision"] is nothing["macro_f1"] is None
    assert MultiLabel(1).score(torch.full((3, 1), torch.nan), sets) == -float("inf")


def test_scores_of_numbers() -> None:
    actual = RNG.normal(size=(50, 2))
    guessed = actual + RNG.normal(size=(50, 2))
    report = Regression(2).scores(torch.from_numpy(guessed), torch.from_numpy(actual))
    assert report.scores["r2"] == pytest.approx(r2_score(actual, guessed))
    rank = np.mean([spearmanr(actual[:, index], guessed[:, index])[0] for index in range(2)])
    assert report.scores["spearman"] == pytest.approx(rank)
    assert report.scores["mse"] == pytest.approx(np.square(actual - guessed).mean())
    assert report.scores["mae"] == pytest.approx(np.abs(actual - guessed).mean())
    constant = Regression(1).scores(torch.zeros(5, 1), torch.arange(5.0)[:, None])
    assert constant.scores["spearman"] is None
    assert Regression(1).score(torch.full((5, 1), torch.nan), torch.arange(5.0)[:, None]) == -float("inf")


def test_a_constant_target_is_met_or_not() -> None:
    """As scikit-learn scores it, in every resample: otherwise one such column is all that an interval tells."""
    actual = torch.stack([torch.arange(40.0), torch.full((40,), 7.0)], 1)
    near = actual + 0.1 * torch.from_numpy(RNG.normal(size=(40, 2)))
    low, high = score_interval(near, actual, Regression(2)) or (0, 0)
    score = Regression(2).score(near, actual)
    assert score == pytest.approx(0.5, abs=0.01), "one column is met, the other is not"
    assert 0.4 < low <= score <= high < 0.6


def test_bootstrap_intervals_cover() -> None:
    """Of test sets with a recall of 0.8 in each of two classes, about 95 in 100 intervals hold the truth."""
    labels = torch.arange(200) % 2
    held = 0
    for seed in range(60):
        right = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.8
        logits = F.one_hot(torch.where(right, labels, 1 - labels), 2).double()
        low, high = score_interval(logits, labels, SingleLabel(2))
        held += low <= 0.8 <= high
        assert 0.06 < high - low < 0.16
    assert held >= 51
    numbers = torch.from_numpy(RNG.normal(size=(80, 1)))
    low, high = score_interval(
        numbers + 0.5 * torch.from_numpy(RNG.normal(size=(80, 1))), numbers, Regression(1)
    )
    assert 0.3 < low < high < 0.95


def test_standard_inputs_by_hand() -> None:
    """Mean and deviation are those of the rows that are given, in any number of parts; constant channels become 0."""
    tokens = (1000 + RNG.normal(size=(2500, 3, 4))).astype(np.float32)
    tokens[:, 1, 2] = 7
    source, rows = InMemoryTokens(tokens), torch.arange(5, 2500)
    transform = fit_input_transform("standard", source, rows)
    assert (transform.l2, transform.is_plain) == (False, False)
    part = tokens[5:].astype(np.float64)
    np.testing.assert_allclose(transform.mean.numpy(), part.mean(0), rtol=1e-6)
    deviation = part.std(0)
    deviation[1, 2] = np.inf
    np.testing.assert_allclose(transform.scale.numpy(), 1 / deviation, rtol=1e-4)
    seen = source.with_transform(transform).batch(torch.tensor([3, 3000 % 2500]))
    np.testing.assert_allclose(seen[1], (tokens[500] - part.mean(0)) / deviation, atol=1e-3)
    both = fit_input_transform("l2+standard", source, rows)
    lengths = np.linalg.norm(part, axis=2, keepdims=True)
    np.testing.assert_allclose(both.mean.numpy(), (part / lengths).mean(0), rtol=1e-5)
    assert fit_input_transform("l2", source, rows).is_plain
    assert torch.equal(
        source.batch(rows), F.normalize(torch.from_numpy(tokens[5:]), dim=2)
    ) or torch.allclose(source.batch(rows), F.normalize(torch.from_numpy(tokens[5:]), dim=2))


def test_transforms_there_and_back() -> None:
    transforms = (
        InputTransform(),
        InputTransform(over_tokens=True),
        InputTransform(l2=False, mean=torch.ones(2, 3), scale=torch.ones(2, 3)),
        InputTransform(projection=torch.eye(3), projected=torch.tensor([1])),
    )
    for transform in transforms:
        state = transform.state() | {"weight": torch.ones(1)}
        again, rest = InputTransform.from_state(state)
        assert list(rest) == ["weight"]
        x = torch.from_numpy(RNG.normal(size=(4, 2, 3))).float()
        torch.testing.assert_close(again.apply_(x.clone()), transform.apply_(x.clone()))


def test_the_quirks_of_the_published_runs() -> None:
    x = torch.from_numpy(RNG.normal(size=(4, 2, 3))).float()
    projection = torch.from_numpy(RNG.normal(size=(3, 3))).float()
    transform = InputTransform(over_tokens=True, projection=projection, projected=torch.tensor([1]))
    expected = x.clone()
    expected[:, 1] = x[:, 1] @ projection
    torch.testing.assert_close(transform.apply_(x.clone()), F.normalize(expected, dim=1))


def test_regression_targets_keep_their_units() -> None:
    targets = torch.from_numpy(1e4 + 50 * RNG.normal(size=(100, 2))).float()
    targets[:, 1] = 3
    scale = OutputScale.of(targets)
    undone = scale.undo(targets)
    torch.testing.assert_close(undone.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(undone.std(0, correction=0), torch.tensor([1.0, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(scale.apply(undone), targets)


def test_targets_that_no_head_could_hold_are_refused() -> None:
    """In float32 1e39 is infinite, and 2^63 is below 0 as a signed integer."""
    with pytest.raises(RequestError, match=r"within float32, to 3.4e\+38, and the largest is 1e\+39"):
        make_task(np.array([1e39, 1.0]))
    with pytest.raises(
        RequestError, match="the largest is 9,223,372,036,854,775,808; number the classes anew"
    ):
        make_task(np.array([0, 2**63], np.uint64))
