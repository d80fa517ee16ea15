"""Results on disk: one row per probe run in ``results.jsonl``, one folder per trained head. Never inside a cache."""

import codecs
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field
from math import isfinite
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Self

from featcache.probing.results.solved_rows import with_present_name
from featcache.probing.scoring.confusion import Confusion
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, canonical_json, finite_or_null, sha256_hex, write_atomic
from featcache.store.inventory import DEFAULT_TAP
from featcache.store.regular_files import open_regular
from featcache.store.views import PLAIN_VIEW

if TYPE_CHECKING:
    from featcache.probing.scoring.metrics import Report

RESULTS_FILE = "results.jsonl"
SCORES_FILE = "scores.json"
CANDIDATES_FILE = "candidates.json"
MODEL = "model"
"""In the preprocessing of a row, the explicit name of the model."""


@dataclass(frozen=True)
class Chosen:
    """What was chosen on the held-out part; which fields are given depends on the solver."""

    learning_rate: float | None = None
    weight_decay: float | None = None
    dropout: float | None = None
    penalty: float | None = None
    converged: bool | None = None
    kept_layers: Sequence[str] | None = None
    settings: Mapping[str, float] | None = None
    """Of a head that is fitted by formula, such as ``k`` and ``temperature``."""


@dataclass(frozen=True)
class ResultRow:
    """The outcome of one head, selection, protocol and seed on one cache. Scores are fractions."""

    run: str
    """Digest of everything that determines the outcome; see `run_id`."""
    cache_key: str
    model: str
    dataset: str
    head: str
    layers: str
    """Layer set or list, as asked."""
    layer_names: Sequence[str]
    tokens: Sequence[str]
    """Token kinds, such as ``cls`` or ``patches``."""
    num_heads: int | None
    """Of a head with attention."""
    precision: str
    """Of matrix products."""
    protocol: str
    input: str
    """Input transform: ``l2``, ``standard`` or ``l2+standard``; of an average, those of its parts."""
    seed: int
    shots: int | None
    """Training samples of each class; None for all."""
    draw: int
    """Of a few-shot run: which draw of the samples."""
    folds: int
    """1 for a held-out part."""
    target_kind: str
    """``single-label``, ``multi-label`` or ``regression``."""
    metric: str
    """Name of the score that was chosen by, and that gains are of."""
    score: float | None
    """Value of the score on test; None if it is not defined, such as R2 of a single sample."""
    scores: Mapping[str, float | None]
    """All scores on test, by name."""
    score_interval: Sequence[float] | None
    """The 95 % interval of `score` over test samples; None where there is none."""
    balanced_accuracy: float | None
    top1: float | None
    top5: float | None
    """These three of single-label targets alone."""
    gain: float | None
    """Gain over the linear probe on the last layer's class token, trained by the protocol; None if either has no score."""
    validation_score: float | None
    """Score on held-out samples of train, of what was chosen; None where nothing could be held out."""
    chosen_head: str
    """The head that was fitted: `head` itself, unless that is ``auto``."""
    solver: str
    """``adamw``, ``exact``, ``closed``, ``auto`` or ``layer``; which of the following fields are given depends on it."""
    learning_rate: float | None
    weight_decay: float | None
    dropout: float | None
    penalty_kind: str | None
    penalty: float | None
    converged: bool | None
    kept_layers: Sequence[str] | None
    """Those that a group lasso left with weight, or the one that ``best-layer`` chose."""
    settings: Mapping[str, float] | None
    """Of a head that is fitted by formula."""
    parameters: int
    seconds: float
    train_samples: int
    test_samples: int
    finished_at: float
    """Seconds since the epoch."""
    version: str
    """Of featcache."""
    folder: str
    """Folder of the trained head, relative to the results."""
    setup: str = ""
    """Digest of everything that was asked for but seed and draw: runs that share it are repetitions. Early rows have none."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the head took besides its size."""
    preprocessing: Mapping[str, str] = field(default_factory=dict)
    """Preprocessing of the cache in parts, as `preprocessing_parts` words them, with the explicit name of its model; empty for early rows."""
    tap: str = DEFAULT_TAP
    """Where in the blocks its tokens were taken; ``final`` if no block is among the layers."""
    views: Sequence[str] = (PLAIN_VIEW,)
    """Views of the images that it was trained on, and that predictions were averaged over."""

    gain_over_solved: float | None = None
    """Gain over the same linear probe, solved exactly; None if either has no score, and in rows of earlier versions."""
    score_intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The 95 % intervals over test samples of all scores that have one, by name; rows of earlier versions have none."""

    @property
    def diverged(self) -> bool:
        """True if the outputs were not finite; only earlier versions wrote such rows, with scores from an argmax over NaN."""
        return any(self.scores.get(name, 0.0) is None for name in ("nll", "mse"))

    def to_dict(self) -> JsonObject:
        """Return the row as plain JSON values."""
        document = asdict(self)
        if tuple(self.views) == (PLAIN_VIEW,):  # as earlier versions wrote it, and can read it
            del document["views"]
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self | None:
        """Read a row back; None for a row of another version's fields, or that is none of ours."""
        document = with_present_name(document)
        needed = {name for name, one in cls.__dataclass_fields__.items() if _has_no_default(one)}
        if not needed <= document.keys() <= cls.__dataclass_fields__.keys() or not _fits(document):
            return None
        # A row that was read is equal to the one that was written.
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
        }
        intervals = values.get("score_intervals", {})
        values["score_intervals"] = {name: tuple(pair) for name, pair in intervals.items()}
        return cls(**values)


_FIELDS: Mapping[tuple[type, ...], Sequence[str]] = {
    (str,): (
        *("run", "cache_key", "model", "dataset", "head", "layers", "precision", "protocol", "input"),
        *("target_kind", "metric", "chosen_head", "solver", "version", "folder", "setup", "tap"),
    ),
    (str, NoneType): ("penalty_kind",),
    (int,): ("seed", "draw", "folds", "parameters", "train_samples", "test_samples"),
    (int, NoneType): ("num_heads", "shots"),
    (int, float): ("seconds", "finished_at"),
    (int, float, NoneType): (
        *("score", "gain", "gain_over_solved", "balanced_accuracy", "top1", "top5", "validation_score"),
        *("learning_rate", "weight_decay", "dropout", "penalty"),
    ),
    (bool, NoneType): ("converged",),
    (list, tuple): ("layer_names", "tokens", "views"),
    (list, tuple, NoneType): ("score_interval", "kept_layers"),
    (dict,): ("scores", "options", "score_intervals", "preprocessing"),
    (dict, NoneType): ("settings",),
}
_TYPES = {name: kinds for kinds, names in _FIELDS.items() for name in names}
_LARGEST = 2**63
"""Of integers: beyond it, one may be no float."""


def _fits(document: Mapping[str, Any]) -> bool:
    """Whether a row's values can be worked with: results are shared, and a folder must not lead elsewhere."""
    if not all(isinstance(value, _TYPES[name]) for name, value in document.items()):
        return False
    interval, settings = document["score_interval"], document["settings"] or {}
    numbers = [value for value in document.values() if isinstance(value, int)]
    numbers += [value for value in document["scores"].values() if value is not None]
    intervals = [interval or (), *document.get("score_intervals", {}).values()]
    if not all(isinstance(pair, list | tuple) and len(pair) in (0, 2) for pair in intervals):
        return False
    texts = [*document["layer_names"], *document["tokens"], *(document["kept_layers"] or ())]
    texts += [*document.get("preprocessing", {}).values(), *document.get("views", ())]
    folder = Path(document["folder"])
    return (
        all(
            _is_number(value)
            for value in (*numbers, *settings.values(), *(end for pair in intervals for end in pair))
        )
        and (interval is None or len(interval) == 2)
        and all(isinstance(text, str) for text in texts)
        and not folder.is_absolute()
        and ".." not in folder.parts
    )


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < _LARGEST)


def _has_no_default(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def run_id(settings: Mapping[str, Any]) -> str:
    """Return 12 hex digits that stand for everything that determines an outcome."""
    return sha256_hex(canonical_json(settings))[:12]


def append_row(out: Path, row: ResultRow) -> None:
    """Append a row to results.jsonl, durably and in one write."""
    path = out / RESULTS_FILE
    document = finite_or_null(row.to_dict())
    line = json.dumps(document, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with path.open("ab+") as file:
        # A line that a killed run left half-written must not swallow this one.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_rows(out: str | Path) -> list[ResultRow]:
    """All rows of results.jsonl; lines that are torn, of another version or of other types are passed over."""
    try:
        content = (Path(out) / RESULTS_FILE).read_bytes()
    except FileNotFoundError:
        return []
    # An editor may have inserted a byte order mark at the start.
    documents = map(_parse, content.removeprefix(codecs.BOM_UTF8).splitlines())
    rows = [ResultRow.from_dict(document) for document in documents if isinstance(document, dict)]
    return [row for row in rows if row is not None]


def _parse(line: bytes) -> object:
    """Return the JSON value of a line; None if the line has no value that can be written again.

    Numbers that are not finite are null: earlier versions wrote NaN as the score of a training that diverged.
    """
    try:
        document = json.loads(line, parse_float=_finite, parse_constant=_finite)
        if b"\\ud" in line.lower():  # maybe half of a surrogate pair, which is no text
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return document


def _finite(text: str) -> float | None:
    value = float(text)
    return value if isfinite(value) else None


def count_lines(out: Path) -> int:
    """Return the lines of results.jsonl that are not blank, valid or not."""
    try:
        return sum(1 for line in (out / RESULTS_FILE).read_bytes().splitlines() if line.strip())
    except FileNotFoundError:
        return 0


def save_scores(directory: Path, report: "Report") -> None:
    """Write scores.json: all scores, those of each class, and the confusion matrix."""
    write_atomic(directory / SCORES_FILE, _text(report.to_dict()))


def read_confusion(directory: str | Path) -> Confusion | None:
    """Read the confusion matrix of a head's test predictions; None if there is none, as for targets other than single labels.

    Raises:
        CacheError: the file is damaged.
    """
    path = Path(directory) / SCORES_FILE
    try:
        descriptor, _ = open_regular(path)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        try:
            document = json.load(file)
        except (ValueError, RecursionError) as error:
            raise CacheError(f"{path}: not valid JSON ({error})") from None
    confusion = document.get("confusion") if isinstance(document, dict) else document
    return None if confusion is None else Confusion.from_json(confusion, str(path))


def save_candidates(directory: Path, candidates: Sequence[Mapping[str, Any]]) -> None:
    """Write candidates.json: head, input transform and score of everything that ``auto`` compared."""
    document = [dict(candidate) for candidate in candidates]
    write_atomic(directory / CANDIDATES_FILE, _text(document))


def _text(document: object) -> bytes:
    return json.dumps(finite_or_null(document), indent=1, allow_nan=False).encode() + b"\n"
