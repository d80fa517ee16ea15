"""The textile images divided anew: how much the scores of docs/results.md owe to which images are the test images.

Part of ``make results``. Heads are fitted as scikit-learn estimators to train and test pooled and divided again, in the same sizes
and the same ten ways for every head.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

import featcache
from featcache.probing.estimators import HeadProbe
from featcache.store.files import write_atomic
from featcache.store.layers import layer_set

HEADS = (("logreg", "standard"), ("ridge", "standard"), ("lda", "l2"), ("linear", "l2"), ("attentive", "l2"))
DIVISIONS = 10
FILE = "divisions.json"

Scores = Mapping[str, Sequence[float]]


def compute(cache: Path, out: Path) -> None:
    """Score every head on every division; what is in `out` already is not done again.

    Args:
        cache: folder of a complete cache.
        out: folder of the results.
    """
    opened = featcache.open(cache)
    splits = [opened[name] for name in ("train", "test")]
    layers = layer_set("all", opened.spec.backbone.num_layers)
    features = np.concatenate([split.load(layers, ["cls", "ap"]) for split in splits])
    labels = np.concatenate([split.labels() for split in splits])
    divisions = StratifiedShuffleSplit(DIVISIONS, test_size=splits[1].num_samples, random_state=0)
    scores = {**read(out)}
    for head, transform in HEADS:
        name = f"{head}, {transform}"
        if name not in scores:
            print("+ ten divisions:", name, flush=True)
            probe = HeadProbe(head, input=transform, protocol="quick")
            found = cross_val_score(probe, features, labels, cv=divisions, scoring="balanced_accuracy")
            scores[name] = [round(float(score), 6) for score in found]
            write_atomic(out / FILE, json.dumps(scores, indent=1).encode() + b"\n")


def read(out: Path) -> Scores:
    """What was computed so far, by head and input transform."""
    path = out / FILE
    scores: Scores = json.loads(path.read_bytes()) if path.exists() else {}
    return scores


def table(scores: Scores) -> list[str]:
    """Lines of Markdown: each head's mean, deviation and range, and its mean gain over the trained linear head of the same division."""
    lines = [
        "| head | input | balanced accuracy, % | least and most | over `linear` |",
        "|---|---|---|---|---|",
    ]
    for name, found in sorted(scores.items(), key=lambda pair: -mean(pair[1])):
        head, transform = name.split(", ")
        percent = [100 * score for score in found]
        gains = [100 * (a - b) for a, b in zip(found, scores["linear, l2"], strict=True)]
        over = f"{mean(gains):+.2f} ± {stdev(gains):.2f}" if any(gains) else ""
        lines.append(
            f"| `{head}` | {transform} | {mean(percent):.2f} ± {stdev(percent):.2f} | {min(percent):.1f} to {max(percent):.1f} | {over} |"
        )
    return lines
