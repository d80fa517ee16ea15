"""Heads as scikit-learn estimators: for `cross_val_score`, `Pipeline`, `clone` and whatever else takes one.

Shapes: N samples, L layers, K token kinds, T tokens, D width, C classes.
"""

from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.probe.fitting import array_job, fit_head
from featcache.probe.heads import HeadInfo, get_head
from featcache.probe.precision import choose_precision
from featcache.probe.protocol import Protocol, get_protocol
from featcache.probe.request import Job
from featcache.probe.tokens import InMemoryTokens
from featcache.probe.trainer import predict, prediction_batch
from featcache.store.errors import RequestError
from featcache.store.layers import FINAL, parse_layers, parse_tokens
from featcache.store.reading.reader import as_float32
from featcache.store.reading.split import SplitReader

Array = npt.NDArray[Any]


class HeadProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Any head of the registry as a classifier; its settings are chosen on a held-out part of what it is fitted on.

    X is a split of a cache (of which `layers` and `tokens` say what is seen), or an array: ``[N, L, K, D]`` as
    `SplitReader.load` gives it, ``[N, T, D]``, or ``[N, D]`` for one layer and one token. Each token is L2-normalised by the head.

    Args:
        head: name in the registry.
        layers: of a split: a layer set or list; by default the head's own.
        tokens: of a split: ``cls``, ``ap`` or ``cls+ap``; by default the head's own.
        num_heads: of a head with attention; by default one for each token.
        protocol: name of a protocol, or a `Protocol`: what is swept over, and all other constants.
        learning_rate: a single one, instead of those of the protocol.
        weight_decay: a single one, instead of those of the protocol.
        dropout: a single one, instead of those of the protocol.
        device: where to train.
        precision: of matrix products: ``fp32``, ``bf16`` or ``auto``.
        random_state: fixes the held-out part, initialisation, order, jitter and dropout.

    Attributes:
        classes_: the C labels, sorted.
        head_: the fitted head, a torch module of one member.
        chosen_: learning rate, weight decay and dropout that were chosen.
        validation_score_: balanced accuracy of these on the held-out part.
        n_features_in_: size of the second axis of X.

    Example:
        >>> from sklearn.model_selection import cross_val_score
        >>> probe = AttentiveProbe(protocol="quick")
        >>> cross_val_score(probe, train.load(["11", "final"], ["cls", "ap"]), train.labels())  # doctest: +SKIP
    """

    def __init__(
        self,
        head: str = "linear",
        *,
        layers: str | None = None,
        tokens: str | None = None,
        num_heads: int | None = None,
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
        self.protocol = protocol
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.device = device
        self.precision = precision
        self.random_state = random_state

    def fit(self, X: Array | SplitReader, y: Any = None) -> Self:  # noqa: N803
        """Choose the settings on a held-out part, then fit the head on everything.

        Args:
            X: see the class.
            y: labels ``[N]``, of any type that can be sorted; those of the split if not given.

        Raises:
            ValueError: X and y do not fit each other, are not finite or are too few.
            UnknownNameError: the head, the protocol, a layer or a token kind does not exist.
        """
        info = get_head(self.head)
        if isinstance(X, SplitReader):
            valid = np.flatnonzero(X.valid())
            y = X.labels()[valid] if y is None else np.asarray(y)[valid]
            X = self._load(X, valid)  # noqa: N806
        array, y = validate_data(self, X, y, allow_nd=True, dtype=_DTYPES, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        self._shape = array.shape[1:]
        source = InMemoryTokens(_as_tokens(array), self.device)
        fitted = fit_head(
            self._job(info, source, array),
            source,
            labels.reshape(-1),
            protocol=self._protocol(info.has_dropout),
            seed=_seed(self.random_state),
            device=self.device,
            precision=choose_precision(self.precision, torch.device(self.device)),
        )
        self.head_ = fitted.head
        self.chosen_ = {name: value for name, value in vars(fitted.chosen).items() if value is not None}
        self.validation_score_ = fitted.validation
        return self

    def decision_function(self, X: Array | SplitReader) -> npt.NDArray[np.float32]:  # noqa: N803
        """Compute logits ``[N, C]``; of two classes the difference of the second and the first, ``[N]``."""
        logits = self._logits(X).numpy()
        # scikit-learn's form of two classes.
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Array | SplitReader) -> npt.NDArray[np.float32]:  # noqa: N803
        """Compute probabilities ``[N, C]``, in the order of `classes_`."""
        return self._logits(X).softmax(1).numpy()

    def predict(self, X: Array | SplitReader) -> Array:  # noqa: N803
        """Return the likeliest label of each sample, ``[N]``."""
        logits = self._logits(X)
        labels: Array = self.classes_[logits.argmax(1).numpy()]
        return labels

    def _logits(self, X: Array | SplitReader) -> torch.Tensor:  # noqa: N803
        check_is_fitted(self)
        array = self._load(X, np.flatnonzero(X.valid())) if isinstance(X, SplitReader) else X
        array = validate_data(self, array, reset=False, allow_nd=True, dtype=_DTYPES)
        if array.shape[1:] != self._shape:
            raise RequestError(
                f"{type(self).__name__} was fitted on X of shape {['N', *self._shape]}, not {list(array.shape)}"
            )
        source = InMemoryTokens(_as_tokens(array), self.device)
        rows = torch.arange(source.num_samples)
        return predict(self.head_, source, rows, prediction_batch(source)).cpu()

    def _load(self, split: SplitReader, rows: npt.NDArray[np.int64]) -> Array:
        """The rows of a split that hold features, ``[N, L, K, D]``."""
        info = get_head(self.head)
        blocks = [int(layer) for layer in split.layers if layer != FINAL]
        layers = parse_layers(
            info.default_layers if self.layers is None else self.layers, max(blocks, default=-1) + 1
        )
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
        return replace(protocol, **given)

    def _job(self, info: HeadInfo, source: InMemoryTokens, array: Array) -> Job:
        """What to fit: X of two axes is one layer, of three a layer for each token."""
        num_layers = array.shape[1] if array.ndim == 4 else None
        # One attention head for each token, as in arXiv 2601.09322, as far as there are channels for them.
        num_heads = self.num_heads or min(source.num_tokens, source.width)
        return array_job(
            info, source.num_tokens, num_layers, num_heads if "num_heads" in info.options else None
        )


class LinearProbe(HeadProbe):
    """A linear head on all tokens; by default of a split, on the class token of the last layer. See `HeadProbe`."""

    def __init__(
        self,
        *,
        layers: str | None = None,
        tokens: str | None = None,
        protocol: str | Protocol = "paper",
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        device: str = "cpu",
        precision: str = "auto",
        random_state: Any = 0,
    ) -> None:
        """Store the parameters; they are checked when the estimator is fitted."""
        super().__init__(
            "linear",
            layers=layers,
            tokens=tokens,
            protocol=protocol,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            device=device,
            precision=precision,
            random_state=random_state,
        )


class AttentiveProbe(HeadProbe):
    """Attentive fusion of layers (arXiv 2601.09322); by default of a split, of class token and average of all layers. See `HeadProbe`."""

    def __init__(
        self,
        *,
        layers: str | None = None,
        tokens: str | None = None,
        num_heads: int | None = None,
        protocol: str | Protocol = "paper",
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        dropout: float | None = None,
        device: str = "cpu",
        precision: str = "auto",
        random_state: Any = 0,
    ) -> None:
        """Store the parameters; they are checked when the estimator is fitted."""
        super().__init__(
            "attentive",
            layers=layers,
            tokens=tokens,
            num_heads=num_heads,
            protocol=protocol,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            dropout=dropout,
            device=device,
            precision=precision,
            random_state=random_state,
        )


_DTYPES = (np.float32, np.float16)
"""What X may be as it is; anything else becomes the first."""


def _as_tokens(array: Array) -> Array:
    """``[N, T, D]`` of ``[N, L, K, D]``, ``[N, T, D]`` or ``[N, D]``."""
    if not 2 <= array.ndim <= 4:
        raise RequestError(f"X must be [N, L, K, D], [N, T, D] or [N, D], not of {array.ndim} axes")
    return array.reshape(len(array), -1, array.shape[-1])


def _seed(random_state: Any) -> int:
    """A seed of whatever scikit-learn takes: a number, a generator, or None."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))
