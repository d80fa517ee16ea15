"""Grids, the paper's table, results and plots through the command line."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from support.caches import make_content, make_plan, write_cache

from .test_errors import check

QUICK = ("probe", "--protocol", "short.toml", "--baselines", "trained")
SHORT = """
base = "quick"
min_epochs = 1
min_steps = 20
"""


def make(root: Path, dataset: str, model: str, width: int = 12, patches: bool = False) -> Path:
    """A cache of 120 and 60 samples in three classes around three centres, 5 layers."""
    plan = make_plan({"train": 120, "test": 60}, num_layers=5, width=width, name=dataset + model)
    content = make_content(plan)
    for columns in content.values():
        centres = np.random.default_rng(1).standard_normal((3, 1, 2, width))
        for name in ("norm2", "final"):
            columns[name] = (columns[name] * 2 + centres[columns["label"]]).astype(columns[name].dtype)
    folder = root / dataset / f"{model}-{plan.spec.key}"
    write_cache(
        folder, plan, content, {"model_names": [model], "dataset_names": [dataset], "completed_at": 1.0}
    )
    return folder


@pytest.fixture(autouse=True)
def protocol(tmp_path):
    (tmp_path / "short.toml").write_text(SHORT)


@pytest.fixture
def caches(tmp_path) -> dict[tuple[str, str], Path]:
    return {
        (dataset, model): make(tmp_path / "root", dataset, model)
        for dataset in ("dtd", "textile")
        for model in ("clip-vit-b-16", "tiny")
    }


def test_the_papers_table_over_a_grid_is_resumed(cli, caches):
    grid = (*QUICK, "--table", "paper", "--model", "clip-vit-b-16,tiny", "--dataset", "dtd,textile")
    first = cli(*QUICK, "--table", "paper", "--model", "tiny", "--dataset", "dtd", "--json")
    assert first.status == 0, first.err
    rows = json.loads(first.out)
    assert [(row["head"], row["layers"], "+".join(row["tokens"])) for row in rows] == [
        ("linear", "last", "cls"),
        *[("linear", layers, "cls+ap") for layers in ("last", "mid+last", "quarters", "all")],
        *[("attentive", layers, "cls+ap") for layers in ("last", "mid+last", "quarters", "all")],
    ]
    done = cli(*grid)
    assert done.status == 0, done.err
    assert done.err.count("row left out: attentive on last, cls+patches") == 4
    assert "--tokens patches adds them" in done.err
    assert "cache 4 of 4, about" in done.err
    assert done.err.count("taken from earlier results") == 9
    again = cli(*grid)
    assert again.err.count("taken from earlier results") == 36
    assert [line for line in again.out.splitlines() if "tiny" in line] == [
        line for line in done.out.splitlines() if "tiny" in line
    ]
    lines = Path("featcache-results/results.jsonl").read_text().splitlines()
    assert len({json.loads(line)["run"] for line in lines}) == len(lines) == 36
    _check_views(cli)
    _check_plots(cli)


def _check_views(cli):
    pivot = cli("results", "--view", "pivot", "--format", "csv")
    assert pivot.status == 0, pivot.err
    table = list(csv.DictReader(pivot.out.splitlines()))
    assert len(table) == 5
    assert table[-1]["dataset"] == "mean"
    rows = [json.loads(line) for line in Path("featcache-results/results.jsonl").read_text().splitlines()]
    for row in rows:
        (line,) = [one for one in table if (one["dataset"], one["model"]) == (row["dataset"], row["model"])]
        column = f"{row['head']} {row['layers']} {'+'.join(row['tokens'])}"
        assert float(line[column]) == pytest.approx(100 * row["balanced_accuracy"])
    gains = json.loads(
        cli("results", "--view", "gains", "--head", "attentive", "--layers", "all", "--json").out
    )
    expected = {
        (row["dataset"], row["model"]): 100 * row["gain"]
        for row in rows
        if row["head"] == "attentive" and row["layers"] == "all"
    }
    assert {
        (row["dataset"], row["model"]): row["attentive all cls+ap"]["value"] for row in gains[:-1]
    } == pytest.approx(expected)
    explicit = "open_clip:ViT-B-16-quickgelu/openai"
    same = [cli("results", "--model", name, "--json").out for name in ("clip-vit-b-16", explicit)]
    assert same[0] == same[1], "whichever name the model is asked for by"
    check(cli("results", "--json", "--to", "x.csv"), 2, "leave one of them out")
    published = cli("results", "--view", "published", "--to", "published.tex")
    assert (published.status, published.out) == (0, "")
    text = Path("published.tex").read_text()
    assert text.count("DTD & clip-vit-b-16 &") == 9
    assert "test split here has 60 samples, the paper's 1,880" in text


def _check_plots(cli):
    drawn = cli(
        "plot", "--dataset", "textile", "--model", "tiny", "--layers", "all", "--to", "plots", "--json"
    )
    assert drawn.status == 0, drawn.err
    paths = [Path(path) for path in json.loads(drawn.out)]
    assert sorted(paths) == sorted(Path("plots").iterdir())
    stems = {path.stem for path in paths}
    for name in ("attention", "attention-by-class", "curve", "sweep-s0", "calibration"):
        assert f"{name}-textile-tiny-attentive-all-cls-ap" in stems
    assert "gains" in stems
    assert len(paths) == 2 * len(stems)


def test_what_is_asked_for_is_wrong(cli, caches):
    many = ("--model", "tiny,vit-b-16", "--dataset", "dtd,pets")
    check_lines = cli(*QUICK, "--head", "linear", *many)
    assert check_lines.status == 2
    assert "3 of 4 caches cannot be taken; extract them, or leave their names out:" in check_lines.err
    assert "no cache matches model tiny, dataset pets" in check_lines.err
    tiny = ("--model", "tiny", "--dataset", "dtd")
    for arguments, parts in (
        (("--table", "papr"), ["unknown table 'papr'; did you mean paper"]),
        (
            ("--table", "paper", "--head", "linear"),
            ["the table paper says which heads it has; leave them out"],
        ),
        (("--table", "paper", "--layers", "all"), ["the table paper says which layers it has"]),
        ((), ["a probe needs a head (--head auto, say"]),
        (
            ("--head", "linear", "--layers", "all,final"),
            ["the layer set 'all' stands alone, not in a list such as 'all,final'; it is 1,2,3,4,final"],
        ),
        (("--head", "linear,attentiv"), ["unknown head 'attentiv'; did you mean attentive"]),
    ):
        check(cli(*QUICK, *tiny, *arguments), 2, *parts)
    check(
        cli("results"),
        2,
        "featcache-results holds no results; `featcache probe --out featcache-results` makes some",
    )
    check(cli("plot"), 2, "featcache-results holds no results")
    listed = cli(*QUICK, *tiny, "--head", "linear,ridge", "--layers", "all", "--tokens", "cls+ap", "--json")
    assert [row["head"] for row in json.loads(listed.out)] == ["linear", "linear", "ridge"]
    for arguments, part in (
        (("--view", "pivt"), "unknown view 'pivt'; did you mean pivot"),
        (("--score", "top-1"), "unknown score 'top-1'; did you mean top1"),
        (("--format", "tex"), "unknown format 'tex'; did you mean latex"),
        (("--to", "table.txt"), "table.txt ends in none of .csv, .md, .tex; say --format"),
        (
            ("--against", "linear"),
            "a reference is trained, solved, best-layer or HEAD:LAYERS:TOKENS, such as linear:last:cls, not 'linear'",
        ),
        (("--head", "knn"), "unknown head 'knn'"),
        (("--view", "gains", "--against", "mlp:all:cls"), "the results do not hold mlp on all, cls"),
        (("--view", "published"), "no result has a backbone, a dataset and a head of arXiv 2601.09322"),
        (("--score", "top5"), "no result has the score top5"),
    ):
        check(cli("results", *arguments), 2, part)
    check(cli("plot", "--kind", "gain"), 2, "unknown kind of plot 'gain'; did you mean gains")
    check(
        cli("plot", "--kind", "shots,attention"),
        2,
        "nothing to plot: the results that are chosen hold no shots or attention",
    )


def test_a_cache_that_cannot_be_probed_is_passed_over(cli, caches, tmp_path):
    """The others are probed; the exit status and the last lines say which was not."""
    bad = caches["dtd", "tiny"]
    chunk = next(
        path for path in (bad / "features.zarr" / "train" / "final").iterdir() if path.name.startswith("c.")
    )
    chunk.unlink()
    done = cli(*QUICK, "--head", "linear", "--model", "tiny", "--dataset", "dtd,textile")
    assert done.status == 1
    assert "1 cache was passed over" in done.err.splitlines()[-2]
    assert str(bad) in done.err.splitlines()[-1]
    rows = [json.loads(line) for line in Path("featcache-results/results.jsonl").read_text().splitlines()]
    assert [row["dataset"] for row in rows] == ["textile"]


def test_options_that_would_be_ignored_are_refused(cli, caches):
    some = str(caches["dtd", "tiny"])
    for arguments, parts in (
        ((*QUICK, "--head", "linear", "--cache", some, "--model", "tiny"), ["--cache says which cache is meant"]),
        ((*QUICK, "--head", "linear", "--cache", some, "--dataset", "dtd"), ["leave --model and --dataset out"]),
        (
            (*QUICK, "--head", "linear", "--cache", "file:///team/dtd/tiny-0123456789ab", "--allow-partial"),
            ["--allow-partial is for caches here"],
        ),
        (("results", "--view", "pivot", "--against", "linear:all:cls"), ["--against is for --view gains and summary"]),
        (("results", "--view", "published", "--score", "top1"), ["--view published compares balanced_accuracy"]),
        (("plot", "--kind", "sweep", "--against", "linear:all:cls"), ["--against is for --kind gains"]),
        (("plot", "--kind", "sweep,curves", "--score", "nll"), ["--score is for --kind gains and shots", "sweep"]),
    ):  # fmt: skip
        check(cli(*arguments), 2, *parts)
