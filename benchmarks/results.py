"""Every head on two datasets with five seeds, as docs/results.md has it: ``make results``.

Needs what `make demo` fetches: the weights of DINOv2 ViT-S/14 and the textile images. Extracts what is not cached, trains what the
results under .demo/evidence do not hold yet (so an interrupted run goes on), and writes the page from them. With --paper the paper's own
heads are also trained by its full protocol, which takes longer than all the rest.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import results_splits
from against_operation import MODEL, write_weights

from featcache.probing.heads import HEADS
from featcache.probing.report.significance import are_alike, mean_interval
from featcache.probing.results.rows import ResultRow, read_rows

REPO = Path(__file__).parent.parent
DEMO = REPO / ".demo"
OUT = DEMO / "evidence"
PAGE = REPO / "docs" / "results.md"
QUICK, PAPER = "quick", "paper"
DATASETS = {
    "digits": ("--dataset", "digits", "--limit", "200"),
    "textile": ("--dataset", "imagefolder:.demo/textile"),
}
SEEDS = "0,1,2,3,4"
BY_FORMULA = (
    *(("logreg", transform) for transform in ("l2", "standard")),
    *(("ridge", transform) for transform in ("l2", "standard")),
)


@dataclass(frozen=True)
class Place:
    """Where caches and results lie, and the backbone."""

    caches: Path
    out: Path
    page: Path
    backbone: tuple[str, ...]
    """Options of `featcache extract` that name it."""
    divided: str
    """Dataset that is divided anew."""


HERE = Place(
    DEMO / "caches",
    OUT,
    PAGE,
    # The page's figures were measured with the paper's preprocessing, which was the default.
    ("--model", "dinov2-vit-s-14", "--weights", ".demo/dinov2_vits14.safetensors", "--preprocess", "paper"),
    "textile",
)


class Run(NamedTuple):
    """One row of the page."""

    head: str
    layers: str
    tokens: str
    input: str | None
    protocol: str = QUICK


SOLVED = Run("logreg", "last", "cls", "l2")
TRAINED = Run("linear", "last", "cls", "l2")
RUNS = (
    TRAINED,
    SOLVED,
    Run("best-layer", "all", "cls", "l2"),
    *(Run(head, "all", "cls+ap", transform) for head, transform in BY_FORMULA),
    *(Run(head, "all", "cls+ap", "l2") for head in ("lda", "ncm", "knn")),
    *(
        Run(name, "all", "cls+ap", "l2")
        for name, info in HEADS.items()
        if info.fitting == "trained" and name != "attentive"
    ),
    *(Run("attentive", "all", "cls+ap", transform) for transform in ("l2", "standard")),
    Run("auto", "all", "cls+ap", None),
)
PAPER_RUNS = (
    Run("linear", "last", "cls", "l2", PAPER),
    *(Run(head, "all", "cls+ap", "l2", PAPER) for head in ("linear", "attentive")),
)
PAPER_SEEDS = "0,1,2"


def featcache(caches: Path, *arguments: str) -> None:
    """Run a public command."""
    command = [sys.executable, "-m", "featcache", *arguments]
    print("+ featcache", *arguments, file=sys.stderr, flush=True)
    subprocess.run(command, check=True, cwd=REPO, env={**os.environ, "FEATCACHE_ROOT": str(caches)})


def compute(place: Place, datasets: Mapping[str, Sequence[str]], runs: Iterable[Run], seeds: str) -> None:
    """Extract and train what is not there; `datasets` are options of `featcache extract` by name."""
    for name, options in datasets.items():
        featcache(place.caches, "extract", *place.backbone, *options)
        for run in runs:
            transform = () if run.input is None else ("--input", run.input)
            featcache(
                place.caches,
                *(
                    "probe",
                    "--dataset",
                    name,
                    "--head",
                    run.head,
                    "--layers",
                    run.layers,
                    "--tokens",
                    run.tokens,
                ),
                *(
                    "--baselines",
                    "none",
                    "--protocol",
                    run.protocol,
                    "--seeds",
                    seeds if run.protocol == QUICK else PAPER_SEEDS,
                ),
                *("--out", str(place.out), *transform),
            )


def rows_of(rows: Iterable[ResultRow], dataset: str, run: Run) -> list[ResultRow]:
    """The rows of a line of the page, one for each seed, the latest."""
    found = {
        row.seed: row
        for row in rows
        if (row.dataset, row.head, row.layers, "+".join(row.tokens), row.protocol)
        == (dataset, run.head, run.layers, run.tokens, run.protocol)
        and (run.input is None or row.input == run.input)
        and row.shots is None
    }
    return [found[seed] for seed in sorted(found)]


def gain(rows: Iterable[ResultRow], reference: Iterable[ResultRow]) -> str:
    """The mean gain over a reference, in points, of the seeds that both have; empty if there is none."""
    scores = {row.seed: row.score for row in reference}
    gains = [100 * (row.score - scores[row.seed]) for row in rows if row.seed in scores]
    return f"{mean(gains):+.2f}" if gains else ""


def table(rows: list[ResultRow], dataset: str) -> list[str]:
    """The table of a dataset, best first."""
    lines = []
    for run in (*RUNS, *PAPER_RUNS):
        found = rows_of(rows, dataset, run)
        if not found:
            continue
        scores = [100 * row.score for row in found if row.score is not None]
        interval = mean_interval(scores)
        spread = (
            (" | all seeds alike" if are_alike(scores) else "")
            if interval is None
            else f" ± {stdev(scores):.2f} | {interval[0]:.1f} to {interval[1]:.1f}"
        )
        test = [row.score_interval for row in found if row.score_interval]
        sample = (
            f"{100 * mean(low for low, _ in test):.1f} to {100 * mean(high for _, high in test):.1f}"
            if test
            else ""
        )
        seconds = mean(row.seconds for row in found)
        over_solved = gain(found, rows_of(rows, dataset, SOLVED))
        over_trained = gain(found, rows_of(rows, dataset, TRAINED._replace(protocol=run.protocol)))
        lines.append(
            (
                mean(scores),
                f"| `{run.head}` | {run.layers}, {run.tokens} | {run.input or 'chosen'} | {run.protocol} | {mean(scores):.2f}{spread or ' | '} "
                f"| {sample} | {over_solved} | {over_trained} | {seconds:.1f} | {len(found)} |",
            )
        )
    header = [
        "| head | tokens | input | protocol | balanced accuracy, % | 95 % over seeds | 95 % over test images | over solved | over trained | s | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return header + [line for _, line in sorted(lines, key=lambda pair: -pair[0])]


def choices(rows: list[ResultRow]) -> list[str]:
    """What auto chose, seed by seed."""
    lines = []
    for dataset in DATASETS:
        found = rows_of(rows, dataset, RUNS[-1])
        if found:
            named = [
                f"{row.input}" if row.chosen_head == "blend" else f"{row.chosen_head} on {row.input}"
                for row in found
            ]
            lines.append(
                f"- {dataset}: "
                + "; ".join(f"seed {row.seed}: {name}" for row, name in zip(found, named, strict=True))
            )
    return lines


def write_page(place: Place, rows: list[ResultRow]) -> None:
    """Write the part of the page between its markers."""
    begin, end = "<!-- made by make results: begin -->", "<!-- made by make results: end -->"
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    versions = ", ".join(f"{name} {version(name)}" for name in ("featcache", "torch", "numpy"))
    parts = [begin, "", f"{machine}; {versions}; precision {rows[0].precision if rows else 'fp32'}.", ""]
    for dataset in DATASETS:
        found = [row for row in rows if row.dataset == dataset]
        if found:
            parts += [
                f"### {dataset}: {found[0].train_samples:,} train, {found[0].test_samples:,} test",
                "",
                *table(rows, dataset),
                "",
            ]
    parts += ["### What auto chose", "", *choices(rows), ""]
    divided = results_splits.read(place.out)
    if divided:
        parts += [
            f"### {place.divided}, divided anew in {len(next(iter(divided.values())))} ways",
            "",
            *results_splits.table(divided),
            "",
        ]
    parts += [end]
    text = place.page.read_text()
    before, rest = text.split(begin)
    place.page.write_text(before + "\n".join(parts) + rest.split(end)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=DATASETS, action="append", help="just this one")
    parser.add_argument("--head", action="append", help="just this one")
    parser.add_argument("--seeds", default=SEEDS, help=f"by default {SEEDS}")
    parser.add_argument("--paper", action="store_true", help="also train by the paper's full protocol")
    parser.add_argument("--write-only", action="store_true", help="write the page from what is there")
    parser.add_argument("--compute-only", action="store_true", help="leave the page as it is")
    parser.add_argument(
        "--toy", type=Path, help="a folder for a small page from toy sizes: only whether it runs"
    )
    arguments = parser.parse_args()
    if arguments.toy is not None:
        run_toy(arguments.toy)
        return
    if not arguments.write_only:
        every = (*RUNS, *PAPER_RUNS) if arguments.paper else RUNS
        runs = [run for run in every if not arguments.head or run.head in arguments.head]
        names = arguments.dataset or DATASETS
        compute(HERE, {name: DATASETS[name] for name in names}, runs, arguments.seeds)
        if not arguments.head and HERE.divided in names:
            divide(HERE)
    if not arguments.compute_only:
        write_page(HERE, read_rows(HERE.out))
        print(json.dumps({"page": str(PAGE.relative_to(REPO))}))


def divide(place: Place, **sizes: Any) -> None:
    """Score heads on divisions of a dataset; `sizes` are those of `results_splits.compute`."""
    (cache,) = (place.caches / place.divided).iterdir()
    results_splits.compute(cache, place.out, **sizes)


def run_toy(folder: Path) -> None:
    """Compute and write a page of a few heads on the digits, from random weights."""
    weights = write_weights(folder / "weights.safetensors")
    backbone = ("--model", MODEL, "--weights", str(weights), "--precision", "fp32")
    place = Place(folder / "caches", folder / "evidence", folder / "results.md", backbone, "digits")
    place.page.write_text(PAGE.read_text())
    runs = [TRAINED, SOLVED]
    compute(place, {"digits": ("--dataset", "digits", "--limit", "30")}, runs, "0,1")
    divide(place, heads=(("ridge", "standard"), ("linear", "l2")), divisions=2)
    write_page(place, read_rows(place.out))


if __name__ == "__main__":
    main()
