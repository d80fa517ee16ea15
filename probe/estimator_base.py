"""What the scikit-learn estimators over heads share: their parameters, how X becomes tokens, and how a head is fitted.

Shapes: N samples, L layers, K token kinds, T tokens, D width, O outputs.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from featcache.probe.heads import HeadInfo, get_head
from featcache.probe.inputs.tokens import InMemoryTokens
from featcache.probe.protocol import Protocol, get_protocol
from featcache.probe.request import Job
from featcache.probe.training.array_fitting import array_job, fit_head
from featcache.probe.training.precision import choose_precision
from featcache.probe.training.trainer import predict, prediction_batch
from featcache.store.errors import RequestError
from featcache.store.layers import FINAL, parse_layers, parse_tokens
from featcache.store.reading.reader import as_float32
from featcache.store.reading.split import SplitReader
from featcache.store.seeds import check_seed

Array = npt.NDArray[Any]

_DTYPES = (np.float32, np.float16)
"""What X may be as it is; anything else becomes the first."""


class TokenEstimator(BaseEstimator):  # type: ignore[misc]
    """A head that is fitted to tokens; see `featcache.probe.estimators.HeadProbe`."""

    def __init__(
        self,
        head: str = "linear",
        *,
        layers: str | None = None,
        tokens: str | None = None,
        num_heads: int | None = None,
        input: str | None = None,
        protocol: str | Protocol = "paper",
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        dropout: float | None = None,
        device: str = "cpu",
        precision: str = "auto",
        random_state: Any = 0,
    ) -> None:
        """Store the parameters; they are checked when the estimator is fitted."""
        self.head = head
        self.layers = layers
        self.tokens = tokens
        self.num_heads = num_heads
        self.input = input
        self.protocol = protocol
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.device = device
        self.precision = precision
        self.random_state = random_state

    def _read(self, X: Array | SplitReader, y: Any, **checks: Any) -> tuple[Array, Array]:  # noqa: N803
        """X as an array of two to four axes, and y as one, which is the split's own if not given; rows without features are left out."""
        if isinstance(X, SplitReader):
            valid = np.flatnonzero(X.valid())
            y = X.labels()[valid] if y is None else np.asarray(y)[valid]
            X = self._load(X, valid)  # noqa: N806
        array, y = validate_data(self, X, y, allow_nd=True, dtype=_DTYPES, ensure_min_samples=2, **checks)
        return array, y

    def _fit(self, array: Array, targets: Array, kind: str, groups: Any = None) -> None:
        info = get_head(self.head)
        self._shape = array.shape[1:]
        source = InMemoryTokens(_as_tokens(array), self.device)
        fitted = fit_head(
            self._job(info, source, array),
            source,
            targets,
            protocol=self._protocol(info.has_dropout),
            seed=_seed(self.random_state),
            target_kind=kind,
            groups=None if groups is None else self._groups(groups, len(array)),
            device=self.device,
            precision=choose_precision(self.precision, torch.device(self.device)),
        )
        self.head_ = fitted.head
        self.chosen_ = {name: value for name, value in vars(fitted.chosen).items() if value is not None}
        self.validation_score_ = fitted.validation

    def _groups(self, groups: Any, num_samples: int) -> Array:
        """The group of every sample, ``[N]``."""
        found: Array = column_or_1d(groups)
        if len(found) != num_samples:
            raise RequestError(f"{num_samples} samples need as many groups, not {len(found)}")
        return found

    def _outputs(self, X: Array | SplitReader) -> torch.Tensor:  # noqa: N803
        """What the head gives for X, ``[N, O]``."""
        check_is_fitted(self)
        array = self._load(X, np.flatnonzero(X.valid())) if isinstance(X, SplitReader) else X
        array = validate_data(self, array, reset=False, allow_nd=True, dtype=_DTYPES)
        if array.shape[1:] != self._shape:
            raise RequestError(
                f"{type(self).__name__} was fitted on X of shape {['N', *self._shape]}, not {list(array.shape)}"
            )
        source = InMemoryTokens(_as_tokens(array), self.device)
        rows = torch.arange(source.num_samples)
        return predict(self.head_, source, rows, prediction_batch(source, self.head_)).cpu()

    def _load(self, split: SplitReader, rows: npt.NDArray[np.int64]) -> Array:
        """The rows of a split that hold features, ``[N, L, K, D]``."""
        info = get_head(self.head)
        asked = info.default_layers if self.layers is None else self.layers
        if not split.depth and asked not in ("last", FINAL):
            raise RequestError(
                f"the split holds the final layer alone, and {asked!r} is asked for; ask for 'last'"
            )
        layers = parse_layers(asked, split.depth)
        tokens = parse_tokens("+".join(info.default_tokens) if self.tokens is None else self.tokens)
        return as_float32(split.gather(rows, layers, tokens), split.dtype)

    def _protocol(self, has_dropout: bool) -> Protocol:
        protocol = get_protocol(self.protocol) if isinstance(self.protocol, str) else self.protocol
        single = {
            "learning_rates": self.learning_rate,
            "weight_decays": self.weight_decay,
            "dropouts": self.dropout if has_dropout else None,
        }
        given: dict[str, Any] = {name: (value,) for name, value in single.items() if value is not None}
        if self.input is not None:
            given["input"] = self.input
        return replace(protocol, **given)

    def _job(self, info: HeadInfo, source: InMemoryTokens, array: Array) -> Job:
        """What to fit: X of two axes is one layer, of three a layer for each token."""
        num_layers = array.shape[1] if array.ndim == 4 else None
        # One attention head for each token, as in arXiv 2601.09322, as far as there are channels for them.
        num_heads = self.num_heads or min(source.num_tokens, source.width)
        return array_job(
            info, source.num_tokens, num_layers, num_heads if "num_heads" in info.options else None
        )


def valid_rows(X: Array | SplitReader, groups: Any) -> Any:  # noqa: N803
    """The groups of those rows of a split that hold features; of an array, all."""
    if groups is None or not isinstance(X, SplitReader):
        return groups
    return np.asarray(groups)[np.flatnonzero(X.valid())]


def _as_tokens(array: Array) -> Array:
    """``[N, T, D]`` of ``[N, L, K, D]``, ``[N, T, D]`` or ``[N, D]``."""
    if not 2 <= array.ndim <= 4:
        raise RequestError(f"X must be [N, L, K, D], [N, T, D] or [N, D], not of {array.ndim} axes")
    return array.reshape(len(array), -1, array.shape[-1])


def _seed(random_state: Any) -> int:
    """A seed of whatever scikit-learn takes: a number, a generator, or None."""
    if isinstance(random_state, int | np.integer):
        return check_seed(random_state, "random_state")
    return int(check_random_state(random_state).randint(2**31))
