"""What the choice of inputs is worth, dataset by dataset, as docs/results.md has it: ``make evidence``.

Preprocessing, statistics tokens, a mirrored view and int8 against the same solved heads. Train and test images are pooled and divided
anew in a few ways, the same for every row. Each row is written to docs/evidence/inputs.jsonl as it is ready, and only missing rows
are computed, so an interrupted run goes on. Needs what `make demo` fetches.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
from evidence_sets import DEMO, REPO, SETS, ImageSet
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedShuffleSplit

import featcache
from featcache.probing.estimators import HeadProbe

ROWS_FILE = REPO / "docs" / "evidence" / "inputs.jsonl"
PAGE = REPO / "docs" / "results.md"
BEGIN, END = "<!-- made by make evidence: begin -->", "<!-- made by make evidence: end -->"
BACKBONE = ("--model", "dinov2-vit-s-14", "--weights", ".demo/dinov2_vits14.safetensors")
DIVISIONS = 3
TEST_SHARE = 0.25
STATISTICS = "sd,max,min"
OWN, PAPER = "own", "paper"
PLAIN, FLIP = "plain", "flip"


@dataclass(frozen=True)
class Inputs:
    """The inputs of one row, and the head that takes them."""

    layers: str = "all"
    tokens: str = "cls+ap"
    preprocess: str = OWN
    views: str = PLAIN
    dtype: str = "float16"
    head: str = "ridge"


def _variants(head: str) -> Iterable[Inputs]:
    for preprocess in (PAPER, OWN):
        yield Inputs("last", "cls", preprocess, head=head)
        for tokens in ("cls+ap", "cls+ap+sd", "cls+ap+max+min", "cls+ap+sd+max+min"):
            yield Inputs("all", tokens, preprocess, head=head)
    yield Inputs(views=f"{PLAIN}+{FLIP}", head=head)
    yield Inputs(dtype="int8", head=head)


INPUTS = (*_variants("ridge"), *_variants("logreg"))
"""Both heads take standardized channels; their penalty is chosen by cross-validation."""


@dataclass(frozen=True)
class Place:
    """Where caches lie and rows go, the backbone, and what is computed."""

    caches: Path
    rows: Path
    page: Path
    backbone: Sequence[str]
    sets: Mapping[str, ImageSet]
    inputs: Sequence[Inputs]
    divisions: int = DIVISIONS


def run_featcache(place: Place, *arguments: str) -> dict[str, Any]:
    """Run a public command with --json and return what it prints."""
    print("+ featcache", *arguments, file=sys.stderr, flush=True)
    environment = {**os.environ, "FEATCACHE_ROOT": str(place.caches)}
    command = [sys.executable, "-m", "featcache", *arguments, "--json"]
    done = subprocess.run(command, check=True, cwd=REPO, env=environment, stdout=subprocess.PIPE)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


class Caches:
    """The caches of one set, each made when a row first needs it."""

    def __init__(self, place: Place, options: Sequence[str]) -> None:
        self._place, self._options = place, options
        self._paths: dict[tuple[str, str], str] = {}

    def path(self, inputs: Inputs) -> str:
        """Return the folder of the cache that holds these inputs."""
        name = (inputs.preprocess, inputs.dtype)
        if name not in self._paths:
            self._paths[name] = self._made(*name)
        return self._paths[name]

    def _made(self, preprocess: str, dtype: str) -> str:
        if dtype != "float16":
            source = self.path(Inputs(preprocess=preprocess))
            return str(run_featcache(self._place, "convert", source, "--dtype", dtype)["path"])
        return self._extracted("--tokens", f"cls,ap,{STATISTICS}", "--preprocess", preprocess)

    def with_views(self, inputs: Inputs) -> str:
        """Return the folder of the cache that holds the views of these inputs as well, which are added to it."""
        return self._extracted("--tokens", "cls,ap", "--preprocess", inputs.preprocess, "--views", FLIP)

    def _extracted(self, *options: str) -> str:
        arguments = ("extract", *self._place.backbone, *self._options, *options)
        return str(run_featcache(self._place, *arguments)["path"])


def features_of(cache: featcache.Cache, inputs: Inputs, view: str) -> npt.NDArray[Any]:
    """Return the features ``[N, L, K, D]`` of all splits, one after another, as float16."""
    parts = [
        cache[split].load(inputs.layers, inputs.tokens, dtype="float16", view=view)
        for split in ("train", "test")
    ]
    return np.concatenate(parts)


def score(place: Place, caches: Caches, inputs: Inputs) -> list[float]:
    """Return the balanced accuracy of every division.

    A head is trained on all views of its train images, and predicts by the mean of its probabilities over the views of an image.
    """
    views = inputs.views.split("+")
    cache = featcache.open(caches.path(inputs) if views == [PLAIN] else caches.with_views(inputs))
    labels = np.concatenate([cache[split].labels() for split in ("train", "test")])
    features = [features_of(cache, inputs, view) for view in views]
    shuffles = StratifiedShuffleSplit(place.divisions, test_size=TEST_SHARE, random_state=0)
    scores = []
    for train, test in shuffles.split(features[0], labels):
        probe = HeadProbe(inputs.head, input="standard", protocol="quick")
        # The views of an image stay on one side of what is held out to choose a penalty.
        probe.fit(
            np.concatenate([each[train] for each in features]),
            np.tile(labels[train], len(views)),
            groups=np.tile(train, len(views)) if len(views) > 1 else None,
        )
        probabilities = np.mean([probe.predict_proba(each[test]) for each in features], axis=0)
        predicted = probe.classes_[probabilities.argmax(1)]
        scores.append(round(float(balanced_accuracy_score(labels[test], predicted)), 6))
    return scores


def compute(place: Place) -> None:
    """Compute every missing row and append it to the file of rows."""
    place.rows.parent.mkdir(parents=True, exist_ok=True)
    for name, images in place.sets.items():
        known = [(row["set"], row["inputs"]) for row in read_rows(place.rows)]
        missing = [inputs for inputs in place.inputs if (name, asdict(inputs)) not in known]
        if not missing:
            continue
        print(f"{name}: {len(missing)} of {len(place.inputs)} rows to compute", file=sys.stderr, flush=True)
        images.prepare()
        caches = Caches(place, images.options)
        # An int8 cache is converted from one without views, which are added last.
        for number, inputs in enumerate(sorted(missing, key=lambda inputs: inputs.views != PLAIN)):
            started = time.perf_counter()
            scores = score(place, caches, inputs)
            row = {
                "set": name,
                "inputs": asdict(inputs),
                "scores": scores,
                "featcache": featcache.__version__,
            }
            with place.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            seconds = time.perf_counter() - started
            print(
                f"{name} {number + 1}/{len(missing)}: {inputs} {100 * mean(scores):.2f} ({seconds:.0f} s)",
                file=sys.stderr,
                flush=True,
            )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that were computed so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tables(place: Place) -> list[str]:
    """Return the page's lines: a table for every set, in percent, with the difference from the inputs of the paper's heads."""
    rows = {(row["set"], Inputs(**row["inputs"])): row["scores"] for row in read_rows(place.rows)}
    lines = []
    for name, images in place.sets.items():
        if not any(name == known for known, _ in rows):
            continue
        lines += [f"### {name}: {images.title}", ""]
        lines += [
            "| preprocessing | layers, tokens | views | type | `ridge` | `logreg` |",
            "|---|---|---|---|---|---|",
        ]
        for inputs in place.inputs:
            if inputs.head == "ridge":
                cells = [_cell(rows, name, inputs, head) for head in ("ridge", "logreg")]
                lines.append(
                    f"| {inputs.preprocess} | {inputs.layers}, {inputs.tokens} | {inputs.views} | {inputs.dtype} | {' | '.join(cells)} |"
                )
        lines.append("")
    return lines


def _cell(rows: Mapping[tuple[str, Inputs], Sequence[float]], name: str, inputs: Inputs, head: str) -> str:
    scores = rows.get((name, Inputs(**{**asdict(inputs), "head": head})))
    if scores is None:
        return ""
    # Differences are taken on the same divisions, which vary much more than the heads do.
    base = rows.get((name, Inputs(preprocess=PAPER, head=head)))
    percent = [100 * value for value in scores]
    if base is None or base is scores or len(scores) < 2:
        return f"{mean(percent):.2f}"
    gains = [value - 100 * other for value, other in zip(percent, base, strict=True)]
    return f"{mean(percent):.2f} ({mean(gains):+.2f} ± {stdev(gains):.2f})"


def write_page(place: Place) -> None:
    """Write the part of the page between its markers."""
    before, rest = place.page.read_text().split(BEGIN)
    body = "\n".join([BEGIN, "", *tables(place), END])
    place.page.write_text(before + body + rest.split(END)[1])


HERE = Place(DEMO / "evidence-caches", ROWS_FILE, PAGE, BACKBONE, SETS, INPUTS)


def toy(folder: Path) -> Place:
    """Return a place for a small page from random weights: only whether it runs."""
    from against_operation import MODEL, write_weights

    weights = write_weights(folder / "weights.safetensors")
    backbone = ("--model", MODEL, "--weights", str(weights), "--precision", "fp32")
    page = folder / "results.md"
    page.write_text(PAGE.read_text())
    sets = {"digits": ImageSet("toy", ("--dataset", "digits", "--limit", "30"))}
    inputs = (
        Inputs(preprocess=PAPER),
        Inputs(tokens="cls+ap+sd"),
        Inputs(views=f"{PLAIN}+{FLIP}"),
        Inputs(dtype="int8"),
    )
    return Place(folder / "caches", folder / "inputs.jsonl", page, backbone, sets, inputs, divisions=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", metavar="set", help=f"{', '.join(SETS)}; all if none is named")
    parser.add_argument(
        "--write-only", action="store_true", help="write the page from the rows that are there"
    )
    parser.add_argument("--toy", type=Path, help="a folder for a small page: only whether it runs")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sets if name not in SETS]
    if unknown:
        parser.error(f"unknown set {unknown[0]!r}; there are {', '.join(SETS)}")
    place = HERE if arguments.toy is None else toy(arguments.toy)
    if not arguments.write_only:
        chosen = {
            name: images
            for name, images in place.sets.items()
            if not arguments.sets or name in arguments.sets
        }
        compute(
            Place(place.caches, place.rows, place.page, place.backbone, chosen, place.inputs, place.divisions)
        )
    write_page(place)


if __name__ == "__main__":
    main()
