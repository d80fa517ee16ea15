"""Memory: what is as large as samples times classes, or train times test, is computed in blocks, or counted and refused before."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from featcache.probing.heads import get_head, knn, ridge
from featcache.probing.inputs.memory import Budget
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import QUICK
from featcache.probing.results.rows import SCORES_FILE, read_confusion, save_scores
from featcache.probing.scoring import bootstrap, metrics
from featcache.probing.scoring.confusion import DENSE_CLASSES, Confusion
from featcache.probing.scoring.held_out import make_held_out
from featcache.probing.scoring.intervals import score_intervals
from featcache.probing.scoring.metrics import single_label_report
from featcache.probing.scoring.tasks import SingleLabel, make_task
from featcache.probing.training.array_fitting import array_job
from featcache.probing.training.closed_form import run_closed_form_sweep
from featcache.probing.training.full_batch import bytes_needed, check_outputs, check_whole
from featcache.probing.training.size import Size
from featcache.store.errors import CacheError, RequestError

PEAK = """
import os, resource, sys
os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np, torch
torch.set_num_threads(1)
from featcache.probing.heads import get_head
from featcache.probing.inputs.memory import Budget
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import QUICK
from featcache.probing.training.array_fitting import array_job, fit_head
from featcache.probing.training.prediction import predict, prediction_batch

def fit(head, samples, width, classes):
    rng = np.random.default_rng(0)
    labels = np.arange(samples) % classes
    features = rng.normal(size=(samples, 1, width)).astype(np.float32)
    features[:, 0, 0] += labels
    tokens = InMemoryTokens(features)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fitted = fit_head(array_job(get_head(head), 1), tokens, labels, protocol=QUICK, memory=2**26)
    rows = torch.arange(samples)
    predict(fitted.head, tokens, rows, prediction_batch(tokens, fitted.head))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

head, *size = sys.argv[1:]
fit(head, 300, 8, 3)  # imports, and what the libraries allocate once
print(1024 * fit(head, *map(int, size)))
"""
# What threads, allocator and libraries take besides.
SLACK = 100e6


@pytest.mark.parametrize(
    ("head", "samples", "width", "classes"),
    # All cosines of the first take 400 MB, outputs of all settings of the second 450 MB, one-hot targets of the third 140 MB.
    [("knn", 10_000, 16, 10), ("knn", 4_000, 8, 5_000), ("ridge", 12_000, 8, 500)],
)
def test_the_peak_is_what_is_counted(head, samples, width, classes):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, head, str(samples), str(width), str(classes)],
        capture_output=True,
        text=True,
        check=True,
    )
    job, size = array_job(get_head(head), 1), Size.of(samples, width, classes, QUICK)
    counted = bytes_needed(job, size, 2**26) + 4 * samples * classes  # the predictions
    assert int(done.stdout) < counted + SLACK
    assert counted < 600e6


def _data(num_samples=240, num_classes=6, width=5):
    rng = np.random.default_rng(0)
    labels = np.arange(num_samples) % num_classes
    centres = rng.normal(size=(num_classes, 1, width))
    features = (centres[labels] + rng.normal(size=(num_samples, 1, width))).astype(np.float32)
    return InMemoryTokens(features), labels


@pytest.mark.parametrize("name", ["knn", "ridge", "lda", "ncm"])
@pytest.mark.parametrize("folds", [1, 3])
def test_a_choice_without_room_for_all_outputs_is_the_same_choice(name, folds):
    tokens, labels = _data()
    protocol = (
        QUICK if folds == 1 else QUICK.__class__(**{**vars(QUICK), "folds": folds, "folds_below": None})
    )
    ample, tight = (
        run_closed_form_sweep(get_head(name), tokens, labels, protocol=protocol, seed=0, memory=memory)
        for memory in (2**31, 1)
    )
    assert tight.settings == ample.settings
    assert [score for _, score in tight.validation] == [score for _, score in ample.validation]
    torch.testing.assert_close(tight.held_out, ample.held_out)
    for own, other in zip(tight.head.state_dict().values(), ample.head.state_dict().values(), strict=True):
        torch.testing.assert_close(own, other)


def test_settings_that_diverged_rank_last_either_way():
    outputs = torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(0))
    outputs[0, 3] = torch.nan
    ranks = []
    for memory in (1, 2**31):
        held = make_held_out(SingleLabel(6), 2, torch.arange(30) % 6, memory)
        held.add(outputs[:, :20])
        held.add(outputs[:, 20:])
        ranks.append(held.ranks())
    assert ranks[0] == ranks[1]
    assert ranks[0][0] == (-float("inf"), -float("inf"))


def test_neighbours_do_not_depend_on_the_blocks(monkeypatch):
    tokens, labels = _data(100)
    head = knn.KnnHead.fit(
        tokens.batch(torch.arange(100)).flatten(1),
        torch.from_numpy(labels),
        (1, 5),
        SingleLabel(6),
        knn.KnnHead.grid(100),
    )
    x = tokens.batch(torch.arange(100))
    whole = head(x)
    monkeypatch.setattr(knn, "BLOCK_VALUES", 1)
    monkeypatch.setattr(knn, "LEAST_ROWS", 7)
    torch.testing.assert_close(head(x), whole)


def test_ridge_does_not_depend_on_the_blocks(monkeypatch):
    tokens, labels = _data()
    weights = []
    for size in (2**24, 100):
        monkeypatch.setattr(ridge, "BLOCK_VALUES", size)
        found = run_closed_form_sweep(get_head("ridge"), tokens, labels, protocol=QUICK, seed=0)
        weights.append(found.head.state_dict()["classifier.weight"])
    torch.testing.assert_close(*weights)


def test_scores_do_not_depend_on_the_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(101, 7, generator=generator), torch.arange(101) % 8
    whole = single_label_report(logits, labels).to_dict()
    seven = logits[:, :7], labels.clamp(max=6), SingleLabel(7)
    intervals = score_intervals(*seven, SingleLabel(7).scores(*seven[:2]))
    monkeypatch.setattr(metrics, "BLOCK_VALUES", 50)
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", 50)
    assert single_label_report(logits, labels).to_dict() == whole
    again = score_intervals(*seven, SingleLabel(7).scores(*seven[:2]))
    assert again.keys() == intervals.keys()
    assert all(again[name] == pytest.approx(intervals[name]) for name in intervals)


@pytest.mark.parametrize("num_classes", [3, DENSE_CLASSES, DENSE_CLASSES + 1, 5_001, 100_003])
def test_a_confusion_matrix_is_no_larger_than_the_predictions(tmp_path, num_classes):
    labels = torch.arange(60) % 3 * ((num_classes - 1) // 2)
    logits = torch.full((60, num_classes), -1.0)
    predicted = labels.where(torch.arange(60) % 5 > 0, num_classes - 1)
    logits[torch.arange(60), predicted] = 1.0
    report = single_label_report(logits, labels)
    save_scores(tmp_path, report)
    written = json.loads((tmp_path / SCORES_FILE).read_text())["confusion"]
    assert len(json.dumps(written)) < 3.1 * DENSE_CLASSES**2
    found = read_confusion(tmp_path)
    assert found.num_classes == num_classes
    expected = confusion_matrix(labels, predicted)
    occurring = np.unique([*labels, *predicted])
    np.testing.assert_array_equal(found.counts, expected[expected > 0])
    np.testing.assert_array_equal(found.labels, occurring[expected.nonzero()[0]])
    np.testing.assert_array_equal(found.predicted, occurring[expected.nonzero()[1]])
    if num_classes <= DENSE_CLASSES:
        assert written == report.confusion == found.dense().tolist()


def test_the_matrices_of_earlier_versions_are_read(tmp_path):
    """Version 0.1.0 wrote lists for any number of classes."""
    matrix = np.zeros((300, 300), np.int64)
    matrix[7, 9], matrix[299, 299] = 3, 4
    (tmp_path / SCORES_FILE).write_text(json.dumps({"scores": {}, "confusion": matrix.tolist()}))
    found = read_confusion(tmp_path)
    np.testing.assert_array_equal(found.dense(), matrix)
    (tmp_path / SCORES_FILE).write_text(json.dumps({"scores": {}, "confusion": None}))
    assert read_confusion(tmp_path) is None
    assert read_confusion(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    "document",
    [
        "no",
        [[1, 2]],
        [[1], [2, 3]],
        [[-1]],
        [["1"]],
        {"classes": 2, "label": [0], "predicted": [2], "count": [1]},
        {"classes": 2, "label": [0], "predicted": [0, 1], "count": [1]},
        {"classes": 2, "label": [0], "predicted": [0], "count": [0.5]},
        {"classes": 2, "label": [0], "predicted": [0]},
    ],
)
def test_a_matrix_that_is_none_is_refused(document):
    with pytest.raises(CacheError, match="here"):
        Confusion.from_json(document, "here")


def test_what_does_not_fit_is_refused_before():
    ridge_job, size = array_job(get_head("ridge"), 4), Size(10_000, 2_000, 256, 100)
    device = torch.device("cpu")
    check_whole(ridge_job, size, device)
    with pytest.raises(
        RequestError, match=r"ridge on 10,000 samples of 1,024 features .* --memory allows 50.0 MB; ask for"
    ):
        check_whole(ridge_job, size, device, 50_000_000)
    with pytest.raises(RequestError, match=r"knn on 10,000,000 samples .* are free; ask for"):
        check_whole(array_job(get_head("knn"), 4), Size(10**7, 2 * 10**6, 10**5, 10_000), device)
    linear = array_job(get_head("linear"), 4)
    check_outputs(linear, Size(5_000, 1_000, 8, 10_000), 1_000)
    with pytest.raises(
        RequestError, match=r"linear for 1,000 test .* 10,000 classes .* 80.0 MB.* allows 1.0 MB"
    ):
        check_outputs(linear, Size(5_000, 1_000, 8, 10_000), 1_000, 1_000_000)
    with pytest.raises(RequestError, match=r"1,000 test and 9,000 held-out .* about 720 MB"):
        check_outputs(linear, Size(45_000, 9_000, 8, 10_000), 1_000, 1_000_000)
    # Decompositions, outputs and heads count, not the features alone.
    small, many = (bytes_needed(ridge_job, Size(2_000, 400, 64, classes), 2**31) for classes in (2, 5_000))
    assert many - small > 4 * 400 * 5_000 * 15
    exact = array_job(get_head("logreg"), 4)
    small, many = (bytes_needed(exact, Size(2_000, 400, 64, classes), 2**31) for classes in (2, 5_000))
    assert many - small > 8 * 400 * 5_000 * 13


@pytest.mark.parametrize("target_type", ["multi-label", "regression"])
def test_targets_of_neighbors_are_taken_in_blocks(target_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all samples at once they would be samples x neighbors x classes: 13 GB for 17,000 samples of 1,000 classes."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(100, 6)).astype(np.float32))
    sets = (rng.random((100, 30)) < 0.3).astype(np.uint8)
    targets = torch.from_numpy(sets.astype(np.float32))
    task, _ = make_task(sets, target_type)
    head = knn.KnnHead.fit(features, targets, (1, 6), task, [{"k": 20, "temperature": 0.2}])
    whole = head(features[:, None])
    taken: list[int] = []
    einsum = torch.einsum

    def count(form: str, weights: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        taken.append(found.numel())
        return einsum(form, weights, found)

    monkeypatch.setattr(torch, "einsum", count)
    monkeypatch.setattr(knn, "BLOCK_VALUES", 20 * 30 * 7)
    torch.testing.assert_close(head(features[:, None]), whole)
    assert len(taken) == 15
    assert max(taken) == 20 * 30 * 7


@pytest.mark.parametrize(
    ("free", "total", "spare"), [(23_000, 8192, 11_500), (16_384, 8192, 8192), (4, 2, 2)]
)
def test_a_budget_by_default_rounds_down(monkeypatch, free, total, spare):
    monkeypatch.setattr("featcache.probing.inputs.memory.free_memory", lambda device: free)
    budget = Budget.of(None, torch.device("cpu"))
    assert budget.for_tokens("train") == total // 2
    assert budget.for_tokens("test") == total // 4
    assert budget.for_members(0) == spare
    assert budget.for_members(10**9) == spare - 3 * spare // 4
    assert Budget.of(1000, torch.device("cpu")).for_members(100) == 900


def test_a_24_gb_card_holds_the_tokens_of_all_layers_of_vit_l_for_cifar_100(monkeypatch):
    """24 layers of class token and average, float16; half of the rest is for members."""
    monkeypatch.setattr("featcache.probing.inputs.memory.free_memory", lambda device: int(23.5e9))
    budget = Budget.of(None, torch.device("cuda"))
    train, test = (2 * samples * 48 * 1024 for samples in (50_000, 10_000))
    assert train <= budget.for_tokens("train")
    assert test <= budget.for_tokens("test")
    assert budget.for_members(train + test) > 12e9
