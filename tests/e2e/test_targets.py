"""From a table of label sets or numbers to scored heads: extraction, cache and probe agree on what targets are."""

import json

import numpy as np
import pytest
from PIL import Image

import featcache

from .conftest import MODEL

SAMPLES = 96


@pytest.fixture
def tables(tmp_path):
    """Images whose red and brightness vary, with a table of label sets and one of numbers."""
    rng = np.random.default_rng(0)
    sets, numbers = ["path,warm,bright"], ["path,light [cd]"]
    for index, (warm, bright) in enumerate(rng.integers(0, 2, (SAMPLES, 2))):
        mean = np.array([40 + 90 * warm, 40, 40]) + 90 * bright
        pixels = rng.normal(mean, 20, (24, 24, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        sets.append(f"{index}.png,{warm},{bright}")
        numbers.append(f"{index}.png,{pixels.mean() / 10:.3f}")
    paths = tmp_path / "sets.csv", tmp_path / "numbers.csv"
    for path, lines in zip(paths, (sets, numbers), strict=True):
        path.write_text("\n".join(lines))
    return paths


@pytest.mark.parametrize(
    ("table", "options", "kind", "metric"),
    [
        (0, (), "multi-label", "mean_average_precision"),
        (1, ("--target", "regression"), "regression", "r2"),
    ],
)
def test_from_a_table_to_scored_heads(cli, tables, weights, table, options, kind, metric):
    made = cli(
        "extract", "--model", MODEL, "--weights", weights, "--dataset", f"csv:{tables[table]}", *options
    )
    assert made.status == 0, made.err
    probed = cli(
        "probe",
        "--head",
        "linear,ridge",
        "--layers",
        "all",
        "--protocol",
        "quick",
        "--baselines",
        "trained",
        "--json",
    )
    assert probed.status == 0, probed.err
    rows = json.loads(probed.out)
    assert [row["head"] for row in rows] == ["linear", "linear", "ridge"]
    assert {(row["target_kind"], row["metric"]) for row in rows} == {(kind, metric)}
    assert rows[-1]["score"] > 0.9
    # The saved head gives the same score to the same samples.
    cache = featcache.open(made.out.split("cache: ")[1].strip())
    head = featcache.load_head(f"featcache-results/{rows[-1]['folder']}")
    assert head.score(cache).scores[metric] == pytest.approx(rows[-1]["score"], abs=1e-6)

    refused = cli("probe", "--head", "lda", "--protocol", "quick")
    assert refused.status == 2
    assert "head 'lda' is for single-label targets" in refused.err
