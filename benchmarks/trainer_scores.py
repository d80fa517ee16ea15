"""Whether heads trained fast are as good: scores on test of both ways, over seeds, each with draws of its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from sklearn.datasets import load_digits
from timing import Document
from torch import Tensor
from trainer_obvious import ObviousTraining
from trainer_sweeps import PRECISIONS

from featcache.probing.heads import get_head
from featcache.probing.heads.scratch import release
from featcache.probing.inputs.data import load_split
from featcache.probing.inputs.tokens import InMemoryTokens, TokenSource
from featcache.probing.protocols.protocol import QUICK, Member, Protocol, batch_size
from featcache.probing.requests.jobs import jobs
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.scoring.metrics import balanced_accuracy
from featcache.probing.training.prediction import predict
from featcache.probing.training.trainer import fit_members
from featcache.store.reading.reader import open_cache

CACHES = Path(__file__).parent.parent / ".demo" / "caches"
Split = tuple[TokenSource, Tensor]


def bench_digits(tiny: bool) -> Document:
    """Balanced accuracy on scikit-learn's digits, in percent: members trained fast, and with the obvious module in fp32."""
    digits = load_digits()
    number = len(digits.target)
    index = np.broadcast_to(8 * np.eye(8), (number, 8, 8))  # attention over tokens knows no order
    tokens = np.concatenate([digits.images, index], axis=2).astype(np.float16)
    labels, train = torch.from_numpy(digits.target), number // 3
    splits = [
        (InMemoryTokens(tokens[part]), labels[part]) for part in (slice(None, train), slice(train, None))
    ]
    members = (Member(1e-2, 1e-2, 0.1), Member(1e-3, 1e-2, 0.0))
    return _scores(splits, members, replace(QUICK, min_steps=10 if tiny else 300), range(2 if tiny else 5))


def bench_textile(tiny: bool) -> Document | str:
    """The same on the demo's cache: class tokens and averages of all layers, a short training of one member."""
    found = sorted(CACHES.glob("textile/*/manifest.json"))
    if not found:
        return "not measured: the demo's cache is not there; `make demo` makes it"
    cache = open_cache(found[0].parent)
    selection = jobs(cache, ProbeRequest(heads=("attentive",)))[-1].selection
    splits: list[Split] = []
    for name in ("train", "test"):
        data = load_split(cache, name, selection, "cpu")
        splits.append((data.tokens, torch.from_numpy(data.labels)))
    steps = 2 if tiny else 60
    protocol = replace(QUICK, min_epochs=1, min_steps=steps)
    return _scores(splits, (Member(1e-3, 1e-2, 0.1),), protocol, range(2 if tiny else 5))


def _scores(
    splits: Sequence[Split], members: Sequence[Member], protocol: Protocol, seeds: Sequence[int]
) -> Document:
    results: dict[str, list[list[float]]] = {
        **{
            f"featcache, {precision}": [_fast(splits, members, protocol, seed, precision) for seed in seeds]
            for precision in PRECISIONS
        },
        "the obvious module, fp32": [_obvious(splits, members, protocol, 1000 + seed) for seed in seeds],
    }
    return {
        "seeds": len(seeds),
        **{
            f"learning rate {member.learning_rate:g}, dropout {member.dropout:g}": {
                way: _spread([scores[index] for scores in by_seed]) for way, by_seed in results.items()
            }
            for index, member in enumerate(members)
        },
    }


def _spread(scores: Sequence[float]) -> Document:
    return {"mean": round(100 * mean(scores), 2), "deviation": round(100 * stdev(scores), 2)}


def _fast(
    splits: Sequence[Split], members: Sequence[Member], protocol: Protocol, seed: int, precision: str
) -> list[float]:
    release()  # predictions leave inference tensors in the buffers, which training could not write to
    (train, labels), (test, wanted) = splits
    classes = int(labels.max()) + 1
    heads = fit_members(
        get_head("attentive").build,
        train,
        labels,
        torch.arange(train.num_samples),
        members,
        protocol=protocol,
        batch_size=batch_size(train.num_samples, protocol),
        seed=seed,
        num_classes=classes,
        precision=precision,
    )
    rows = torch.arange(test.num_samples)
    return [balanced_accuracy(predict(head, test, rows, 256), wanted, classes) for head in heads]


def _obvious(
    splits: Sequence[Split], members: Sequence[Member], protocol: Protocol, seed: int
) -> list[float]:
    (train, labels), (test, wanted) = splits
    classes = int(labels.max()) + 1
    tokens, unseen = (source.batch(torch.arange(source.num_samples)) for source in (train, test))
    scores = []
    for member in members:
        torch.manual_seed(seed)
        training = ObviousTraining("attentive", tokens, labels, member, protocol, classes)
        head = training.fit(batch_size(len(labels), protocol))
        with torch.inference_mode():
            logits = torch.cat([head(part) for part in unseen.split(256)])
        scores.append(balanced_accuracy(logits, wanted, classes))
    return scores
