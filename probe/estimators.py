"""Heads as scikit-learn estimators: for `cross_val_score`, `Pipeline`, `clone` and whatever else takes one.

Shapes: N samples, L layers, K token kinds, T tokens, D width, C classes, O outputs.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from featcache.probing.estimator_base import Array, TokenEstimator, valid_rows
from featcache.probing.heads import HEADS
from featcache.probing.protocols.protocol import Protocol
from featcache.probing.scoring.kinds import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from featcache.store.reading.split import SplitReader


class HeadProbe(ClassifierMixin, TokenEstimator):  # type: ignore[misc]
    """Any head of the registry as a classifier; its settings are chosen on a held-out part of what it is fitted on.

    X is a split of a cache (of which `layers` and `tokens` say what is seen), or an array: ``[N, L, K, D]`` as
    `SplitReader.load` gives it, ``[N, T, D]``, or ``[N, D]`` for one layer and one token. Tokens are given as the backbone makes
    them: the input transform, by default L2 normalisation of each, is part of the head.

    Args:
        head: name in the registry (`featcache heads`), ``auto`` among them.
        layers: of a split: a layer set or list; by default the head's own.
        tokens: of a split: ``cls``, ``ap`` or ``cls+ap``; by default the head's own.
        num_heads: of a head with attention; by default one for each token.
        input: input transform: ``l2``, ``standard`` or ``l2+standard``; by default the protocol's.
        protocol: name or TOML file of a protocol, or a `Protocol`: what is swept over, and all other constants.
        learning_rate: a single one, instead of those of the protocol.
        weight_decay: a single one, instead of those of the protocol.
        dropout: a single one, instead of those of the protocol.
        device: where to train.
        precision: of matrix products: ``fp32``, ``bf16`` or ``auto``.
        random_state: fixes the held-out part, initialisation, order, jitter and dropout.

    Attributes:
        classes_: the C labels, sorted; the columns of label sets.
        head_: the fitted head, a torch module of one member.
        chosen_: the settings that were chosen, such as ``learning_rate``.
        validation_score_: balanced accuracy of these on the held-out part; mean average precision for label sets.
        n_features_in_: size of the second axis of X.

    Example:
        >>> from sklearn.model_selection import cross_val_score
        >>> probe = AttentiveProbe(protocol="quick")
        >>> cross_val_score(probe, train.load(["11", "final"], ["cls", "ap"]), train.labels())  # doctest: +SKIP
    """

    def fit(self, X: Array | SplitReader, y: Any = None, groups: Any = None) -> Self:  # noqa: N803
        """Choose the settings on a held-out part, then fit the head on everything.

        Args:
            X: see the class.
            y: labels ``[N]``, of any type that can be sorted, or label sets ``[N, C]`` of 0 and 1 (dense or sparse); by
                default the labels of the split.
            groups: group of every sample ``[N]``; samples of one group are held out together.

        Raises:
            ValueError: X and y do not fit each other, are not finite or are too few.
            UnknownNameError: the head, the protocol, a layer or a token kind does not exist.
        """
        sets = _are_label_sets(X.labels()[:1] if y is None and isinstance(X, SplitReader) else y)
        groups = valid_rows(X, groups)
        array, y = self._read(X, y, multi_output=sets)
        check_classification_targets(y)
        self._label_sets = sets
        if sets:
            y = y.toarray() if issparse(y) else y
            self.classes_ = np.arange(y.shape[1])
            self._fit(array, y.astype(np.uint8), MULTI_LABEL, groups)
            return self
        self.classes_, labels = np.unique(y, return_inverse=True)
        self._fit(array, labels.reshape(-1), SINGLE_LABEL, groups)
        return self

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn whether the head takes label sets too."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self.head in HEADS and MULTI_LABEL in HEADS[self.head].kinds
        return tags

    def decision_function(self, X: Array | SplitReader) -> npt.NDArray[np.float32]:  # noqa: N803
        """Compute logits ``[N, C]``; for two classes, except with label sets, second minus first, ``[N]``."""
        logits = self._outputs(X).numpy()
        if self._label_sets:
            return logits
        # scikit-learn's form of two classes.
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Array | SplitReader) -> npt.NDArray[np.float32]:  # noqa: N803
        """Compute probabilities ``[N, C]``, in the order of `classes_`; label sets have independent probabilities."""
        outputs = self._outputs(X)
        return (outputs.sigmoid() if self._label_sets else outputs.softmax(1)).numpy()

    def predict(self, X: Array | SplitReader) -> Array:  # noqa: N803
        """Return the likeliest label of each sample, ``[N]``, or label sets ``[N, C]`` of 0 and 1."""
        outputs = self._outputs(X)
        if self._label_sets:
            return (outputs > 0).numpy().astype(np.int64)
        likeliest = outputs.argmax(1).numpy()
        labels: Array = self.classes_[likeliest]
        return labels


class HeadRegressor(MultiOutputMixin, RegressorMixin, TokenEstimator):  # type: ignore[misc]
    """A head as a regressor: y is one quantity ``[N]``, or several ``[N, O]``. For the rest see `HeadProbe`.

    Attributes:
        head_: the fitted head, a torch module of one member.
        chosen_: the settings that were chosen.
        validation_score_: R2 of these on the held-out part.
    """

    def fit(self, X: Array | SplitReader, y: Any = None, groups: Any = None) -> Self:  # noqa: N803
        """Choose the settings on a held-out part, then fit the head on everything; errors as of `HeadProbe.fit`.

        Args:
            X: see `HeadProbe`.
            y: quantities ``[N]`` or ``[N, O]``; the targets of the split if not given.
            groups: group of every sample ``[N]``; samples of one group are held out together.
        """
        groups = valid_rows(X, groups)
        array, y = self._read(X, y, multi_output=True, y_numeric=True)
        self._single = y.ndim == 1
        columns = y.reshape(len(y), -1).astype(np.float64)
        # Scale in float64, before any rounding to float32: differences between targets may be small beside their mean. The scale is
        # a power of two, which changes no digit, and brings the squares of 1e200 and 1e-200 into range.
        unit = np.ldexp(1.0, np.frexp(np.abs(columns).max(0))[1] - 1)
        columns = columns / unit
        mean, deviation = columns.mean(0), columns.std(0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        self._fit(array, ((columns - mean) / deviation).astype(np.float32), REGRESSION, groups)
        self._mean, self._deviation = mean * unit, deviation * unit
        return self

    def predict(self, X: Array | SplitReader) -> npt.NDArray[np.float64]:  # noqa: N803
        """Return the quantities in their own units, ``[N]`` or ``[N, O]`` as y was; float64, as scikit-learn has them."""
        standard = self._outputs(X).double().numpy()
        outputs: npt.NDArray[np.float64] = standard * self._deviation + self._mean
        return outputs[:, 0] if self._single else outputs


def _are_label_sets(y: Any) -> bool:
    """Return whether y has a column of 0 and 1 for every class."""
    if y is None or (not issparse(y) and np.asarray(y).ndim != 2):
        return False
    with np.errstate(invalid="ignore"):  # values that are not finite are refused later, with a message
        return bool(type_of_target(y) == "multilabel-indicator")


class LinearProbe(HeadProbe):
    """A linear head on all tokens; by default of a split, on the class token of the last layer. See `HeadProbe`."""

    def __init__(
        self,
        *,
        layers: str | None = None,
        tokens: str | None = None,
        input: str | None = None,
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
            input=input,
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
        super().__init__(
            "attentive",
            layers=layers,
            tokens=tokens,
            num_heads=num_heads,
            input=input,
            protocol=protocol,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            dropout=dropout,
            device=device,
            precision=precision,
            random_state=random_state,
        )

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that scores on data of two channels are poor.

        A layer norm over two channels keeps only which of the two is larger. This separates two classes, but not three.
        """
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags
