"""Rows of results, made up."""

from featcache.probing.results.rows import ResultRow, run_id

FIELDS = {
    "run": "0" * 12,
    "cache_key": "a" * 12,
    "model": "tiny",
    "dataset": "made",
    "head": "linear",
    "layers": "last",
    "layer_names": ["final"],
    "tokens": ["cls"],
    "num_heads": None,
    "precision": "fp32",
    "protocol": "quick",
    "input": "l2",
    "seed": 0,
    "shots": None,
    "draw": 0,
    "folds": 1,
    "target_kind": "single-label",
    "metric": "balanced_accuracy",
    "score_interval": None,
    "top5": None,
    "gain": 0.0,
    "validation_score": 0.5,
    "solver": "adamw",
    "learning_rate": 0.01,
    "weight_decay": 1e-4,
    "dropout": 0.0,
    "penalty_kind": None,
    "penalty": None,
    "converged": None,
    "kept_layers": None,
    "settings": None,
    "parameters": 1234,
    "seconds": 1.5,
    "train_samples": 100,
    "test_samples": 50,
    "finished_at": 0.0,
    "version": "0",
    "folder": "heads/made",
}


OUTCOMES = ("run", "seed", "draw", "score", "balanced_accuracy", "top1", "scores", "chosen_head", "folder")


def made_row(score: float, **changes) -> ResultRow:
    """A row with this balanced accuracy; of any other field what is given."""
    fields = {**FIELDS, "score": score, "balanced_accuracy": score, "top1": score, **changes}
    fields.setdefault("scores", {"balanced_accuracy": score, "top1": score, "top5": None, "nll": 1 - score})
    fields.setdefault("chosen_head", fields["head"])
    outcomes = (*OUTCOMES, "input") if fields["solver"] == "auto" else OUTCOMES
    asked = {name: value for name, value in fields.items() if name not in outcomes}
    fields.setdefault("setup", run_id(asked))
    row = ResultRow.from_dict(fields)
    assert row is not None
    return row


def made_rows(scores: list[float], **changes) -> list[ResultRow]:
    """A row for every seed from 0 on."""
    return [made_row(score, seed=seed, **changes) for seed, score in enumerate(scores)]
