"""One rule for exact ties: every figure of a report counts the predictions that the table of predictions holds."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from featcache.probing.heads.knn import KnnHead
from featcache.probing.results.predictions import save_predictions
from featcache.probing.scoring import ranks
from featcache.probing.scoring.metrics import calibration_error, scores, single_label_report, top_k
from featcache.probing.scoring.tasks import SingleLabel

RNG = np.random.default_rng(0)


def obvious(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Sort every row by logit, then by index; the classes that share the lowest place count only as the prediction."""
    right = []
    for row, label in zip(logits, labels, strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        last = [c for c in order if row[c] == row.min()]
        counted = [c for c in order[:k] if len(last) == 1 or c not in last or c == order[0]]
        right.append(label in counted)
    return float(np.mean(right))


@pytest.mark.parametrize("levels", [1, 2, 3, 1000])
@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_top_k_breaks_ties_by_the_lower_index(monkeypatch: pytest.MonkeyPatch, levels: int, k: int) -> None:
    monkeypatch.setattr(ranks, "BLOCK_VALUES", 70)
    logits, labels = RNG.integers(0, levels, (300, 7)) / 8, RNG.integers(0, 9, 300)
    found = top_k(torch.from_numpy(logits), torch.from_numpy(labels), k)
    assert found == pytest.approx(obvious(logits, labels, k), abs=1e-12)


def test_all_figures_of_a_report_count_the_same_predictions(tmp_path: Path) -> None:
    """Logits that tie, and such as tie only as probabilities of float32."""
    logits = torch.from_numpy(RNG.integers(0, 3, (200, 8))).float()
    logits[100:] = 40 * (logits[100:] > 1) + 1e-6 * torch.rand(100, 8)
    labels = torch.from_numpy(RNG.integers(0, 8, 200))
    report, predicted = single_label_report(logits, labels), logits.argmax(1)
    probabilities = logits.softmax(1).numpy()
    save_predictions(
        tmp_path / "p.csv",
        [str(row) for row in range(200)],
        labels.numpy(),
        probabilities,
        list("abcdefgh"),
        predicted=predicted.numpy(),
    )
    listed = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [int(row["predicted"]) for row in listed] == predicted.tolist()
    accuracy = accuracy_score(labels, predicted)
    confusion = np.asarray(report.to_dict()["confusion"])
    assert report.scores["top1"] == pytest.approx(accuracy)
    assert np.trace(confusion) / confusion.sum() == pytest.approx(accuracy)
    assert report.scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    sure = torch.tensor([[3.0, 3.0]] * 4)
    assert calibration_error(sure, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25)


def test_neighbors_that_did_not_vote_for_a_class_do_not_put_it_among_five() -> None:
    """With one neighbor, five guesses are one; with three, at most three."""
    features = torch.from_numpy(RNG.normal(size=(400, 8))).float()
    labels = torch.from_numpy(RNG.integers(0, 8, 400))
    settings = [{"k": 1, "temperature": 0.07}, {"k": 3, "temperature": 0.07}]
    head = KnnHead.fit(features, labels, (1, 8), SingleLabel(8), settings)
    tests, wanted = (
        torch.from_numpy(RNG.normal(size=(300, 1, 8))).float(),
        torch.from_numpy(RNG.integers(0, 8, 300)),
    )
    with torch.inference_mode():
        one, three = head(tests)
    assert top_k(one, wanted, 5) == top_k(one, wanted, 1)
    near = torch.nn.functional.normalize(tests[:, 0]) @ torch.nn.functional.normalize(features).T
    voted = labels[near.topk(3, dim=1).indices]
    assert top_k(three, wanted, 5) == pytest.approx(float((voted == wanted[:, None]).any(1).double().mean()))


def test_five_guesses_among_few_classes_are_no_score() -> None:
    labels = torch.arange(60) % 8
    assert scores(torch.randn(60, 8), labels).top5 is not None
    assert scores(torch.randn(60, 5), labels).top5 is None, "the head tells five classes"
    assert scores(torch.randn(60, 8), labels % 5).top5 is None, "the samples have five classes"
