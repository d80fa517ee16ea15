"""predictions.csv: what is read back is what was predicted."""

import csv

import numpy as np
import pytest

from featcache.probing.plots.calibration import calibration_figure, reliability
from featcache.probing.results.predictions import read_confidences, save_predictions, shortest
from featcache.probing.scoring.kinds import MULTI_LABEL, REGRESSION
from featcache.store.errors import CacheError


def _read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_quantities_keep_all_their_digits(tmp_path):
    rng = np.random.default_rng(0)
    targets = (2_459_000 + 5 * rng.normal(size=(50, 1))).astype(np.float32)
    outputs = np.concatenate([targets[:25], 1e-9 * targets[25:]]).astype(np.float32)
    save_predictions(
        tmp_path / "p.csv", [str(i) for i in range(50)], targets, outputs, ["julian day"], REGRESSION
    )
    rows = _read(tmp_path / "p.csv")
    np.testing.assert_array_equal(np.float32([row["julian day"] for row in rows]), targets[:, 0])
    np.testing.assert_array_equal(np.float32([row["predicted julian day"] for row in rows]), outputs[:, 0])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_numbers_are_short_and_exact(kind):
    for value in (0, 1, -3, 0.1, 1 / 3, 1e-7, 16777217, 1.5e20):
        number = kind(value)
        assert kind(shortest(number)) == number
    assert [shortest(np.float32(value)) for value in (0.1, 3, np.nan, -np.inf)] == ["0.1", "3", "", ""]


def test_label_sets_are_zeros_and_ones(tmp_path):
    save_predictions(
        tmp_path / "p.csv", ["a"], np.float32([[0, 1]]), np.float32([[0.25, 1e-8]]), ["x", "y"], MULTI_LABEL
    )
    assert _read(tmp_path / "p.csv") == [
        {"sample_id": "a", "x": "0", "y": "1", "predicted x": "0.25", "predicted y": "1e-08"}
    ]


def test_a_prediction_without_a_probability_has_none_in_any_file_or_figure(tmp_path):
    path = tmp_path / "p.csv"
    outputs = np.float32([[0.75, 0.25], [np.nan, np.nan], [0.125, 0.875]])
    save_predictions(path, ["a", "b", "c"], np.array([0, 1, 0]), outputs, ["x", "y"])
    probability, hit = read_confidences(path)
    np.testing.assert_array_equal(probability, [0.75, np.nan, 0.875])
    np.testing.assert_array_equal(hit, [True, False, False])
    found = reliability(probability, hit)
    assert (found.counts.sum(), found.unknown) == (2, 1)
    assert found.expected_error == pytest.approx((0.25 + 0.875) / 2)
    title = calibration_figure(found, "a title").get_suptitle()
    assert "1 of 3 predictions have no probability" in title.replace("\n", " ")
    nothing = reliability(np.full(4, np.nan), np.zeros(4, bool))
    assert nothing.expected_error is None
    title = calibration_figure(nothing, "a title").get_suptitle().replace("\n", " ")
    assert "calibration error no value" in title
    assert "4 of 4" in title


def test_a_damaged_table_of_predictions_is_one_line(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("sample_id,label,predicted,probability\na,0,0,high\n")
    with pytest.raises(CacheError, match=r"is damaged .*train the head again"):
        read_confidences(path)
    path.write_bytes(b"sample_id,label,predicted,probability\n\xff,0,0,1\n")
    with pytest.raises(CacheError, match="is damaged"):
        read_confidences(path)
    assert not len(read_confidences(tmp_path / "none.csv")[0])


@pytest.mark.parametrize(
    ("names", "header"),
    [
        (["a", "a"], ["a", "a.1", "predicted a", "predicted a.1"]),
        (["a", "predicted a"], ["a", "predicted a", "predicted a.1", "predicted predicted a"]),
        (["sample_id", "b"], ["sample_id.1", "b", "predicted sample_id", "predicted b"]),
        (["a", "a", "a.1"], ["a", "a.2", "a.1", "predicted a", "predicted a.2", "predicted a.1"]),
    ],
)
def test_columns_of_equal_names_can_be_told_apart(tmp_path, names, header):
    values = np.arange(2 * len(names), dtype=np.float32).reshape(2, -1)
    path = tmp_path / "predictions.csv"
    save_predictions(path, ["x", "y"], values, values + 100, names, REGRESSION)
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == ["sample_id", *header]
    numbers = np.array([[float(row[name]) for name in header] for row in rows])
    np.testing.assert_array_equal(numbers, np.concatenate([values, values + 100], 1))


def test_classes_called_as_the_columns_of_single_labels_are_no_confidences(tmp_path):
    path = tmp_path / "predictions.csv"
    sets = np.eye(3, dtype=np.uint8)
    save_predictions(path, list("xyz"), sets, sets * 0.9, ["label", "predicted", "probability"], MULTI_LABEL)
    probability, right = read_confidences(path)
    assert len(probability) == len(right) == 0
