"""A trained head as something to score new features with: no cache is needed, and others are refused.

Shapes: N samples, L layers, K token kinds, T tokens, D width, C classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featcache.probing.heads.base import Head
from featcache.probing.inputs.data import load_split
from featcache.probing.inputs.memory import Budget
from featcache.probing.inputs.selection import view_words
from featcache.probing.inputs.tokens import InMemoryTokens, TokenSource
from featcache.probing.results.saved_head import HeadConfig, features_digest, load_head, views_in
from featcache.probing.scoring.kinds import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from featcache.probing.scoring.metrics import Report
from featcache.probing.scoring.tasks import MultiLabel, Regression, SingleLabel, Task, as_tensor, make_task
from featcache.probing.training.prediction import predict_samples
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.home import expanded
from featcache.store.layers import split_tokens
from featcache.store.preprocessing import preprocessing_label
from featcache.store.reading.reader import Cache
from featcache.store.reading.split import Names
from featcache.store.views import PLAIN_VIEW

Features = npt.NDArray[Any] | torch.Tensor


class TrainedHead:
    """A head that was trained on a cache, and what it knows of that.

    Features are either an array with the tokens it was trained on, of the same backbone, or an open cache, of which a
    split is taken. Tokens are given as the backbone makes them: what the head does to its input is its own business.

    Example:
        >>> head = featcache.load_head("featcache-results/heads/...")            # doctest: +SKIP
        >>> head.layers, head.tokens                                             # doctest: +SKIP
        (('11', 'final'), ('cls', 'ap'))
        >>> head.predict_proba(features, layers=["11", "final"])                 # [N, 2, 2, D] -> [N, C]  # doctest: +SKIP
        >>> head.predict_proba(featcache.open("caches/other/..."), split="test")                           # doctest: +SKIP
    """

    def __init__(self, head: Head, config: HeadConfig) -> None:
        """Take a head of one member and its config, as `load_head` returns them."""
        self._head = head.eval()
        self._task = task_of(config.target_kind, config.num_classes)
        self.config = config

    @classmethod
    def load(cls, folder: str | Path) -> "TrainedHead":
        """Read a head that `featcache probe` saved.

        Raises:
            FileNotFoundError: there is none in `folder`.
            CacheError: its files are damaged or do not fit each other.
        """
        return cls(*load_head(expanded(folder)))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the L layers that it sees."""
        return tuple(self.config.layers)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Token kinds that it sees, such as ``cls`` and ``ap``, or ``patches``."""
        return tuple(self.config.tokens)

    @property
    def tap(self) -> str:
        """Where in the blocks its tokens are taken, such as ``norm2``; ``final`` if it sees the final layer alone."""
        return self.config.selection.tap

    @property
    def views(self) -> tuple[str, ...]:
        """Views of every image that it was trained on, ``plain`` or such as ``flip``; it averages over them."""
        return tuple(self.config.views)

    @property
    def places(self) -> list[tuple[str, str]]:
        """Layer and kind of each of the T tokens, in the order in which it sees them."""
        return self.config.selection.places()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in label order; those that training did not meet have no logit."""
        return tuple(self.config.class_names)

    def decision_function(
        self,
        features: Features | Mapping[str, Features] | Cache,
        *,
        split: str = "test",
        layers: Names | None = None,
        tokens: Names | None = None,
    ) -> npt.NDArray[np.float32]:
        """Compute logits, or the quantities of a regression.

        Args:
            features: ``[N, L, K, D]``, or ``[N, T, D]`` in the order of `places`, float16, bfloat16 or float32; or an open
                cache. Of a head with several `views`, a mapping from the name of each to such an array.
            split: of the cache.
            layers: the layers that an array holds, by name or as the layer set that the head was trained on, to be checked;
                nothing in an array itself tells.
            tokens: the token kinds that an array holds, to be checked.

        Returns:
            ``[N, C]``; of a cache, the rows that hold features.

        Raises:
            RequestError: the features are not those that the head was trained on, or not finite; says which those are.
            UnknownNameError: the cache does not hold them.
        """
        source = (
            self._read(features, split, labeled=False)[0]
            if isinstance(features, Cache)
            else self._take(features, layers, tokens)
        )
        return self._outputs(source).numpy()

    def predict_proba(
        self,
        features: Features | Mapping[str, Features] | Cache,
        *,
        split: str = "test",
        layers: Names | None = None,
        tokens: Names | None = None,
    ) -> npt.NDArray[np.float32]:
        """Compute probabilities ``[N, C]``; arguments and errors as for `decision_function`, and there are none of quantities."""
        if self.config.target_kind == REGRESSION:
            raise RequestError("this head predicts quantities, not classes; use predict")
        logits = self.decision_function(features, split=split, layers=layers, tokens=tokens)
        return self._task.probabilities(torch.from_numpy(logits)).numpy()

    def predict(
        self,
        features: Features | Mapping[str, Features] | Cache,
        *,
        split: str = "test",
        layers: Names | None = None,
        tokens: Names | None = None,
    ) -> npt.NDArray[Any]:
        """Return what the head predicts; arguments and errors as for `decision_function`.

        Returns:
            Labels ``[N]``, int64; of label sets ``[N, C]``, 0 and 1, int64; of quantities ``[N, O]`` in their units, float32.
        """
        outputs = self.decision_function(features, split=split, layers=layers, tokens=tokens)
        if self.config.target_kind == REGRESSION:
            return outputs
        single = self.config.target_kind == SINGLE_LABEL
        labels: npt.NDArray[Any] = (outputs.argmax(1) if single else outputs > 0).astype(np.int64)
        return labels

    def score(self, cache: Cache, split: str = "test") -> Report:
        """Score the head on a split of a cache of the same classes or quantities.

        Raises:
            RequestError: another backbone, or other classes.
            UnknownNameError: the cache does not hold the split, or tokens that the head sees.
        """
        names = tuple(cache.inventory.class_names)
        if names != self.class_names:
            raise RequestError(
                f"the head tells {_listed(self.class_names)}, the cache {cache.key} has {_listed(names)}; "
                "predict works all the same"
            )
        source, labels = self._read(cache, split)
        _, targets = make_task(labels, self.config.target_kind)
        return self._task.scores(self._outputs(source), as_tensor(targets))

    def check(self, cache: Cache) -> None:
        """Refuse a cache whose tokens mean something else: of another backbone, or of other preprocessing.

        Raises:
            RequestError: says what the head was trained on, and what the cache holds.
        """
        backbone, config = cache.spec.backbone, self.config
        if features_digest(backbone, views_in(cache, config.views)) == config.features:
            return
        mine, its = (
            (config.architecture, config.weights_digest[:12]),
            (backbone.architecture, backbone.weights_digest[:12]),
        )
        how = "of another input size or preprocessing" if mine == its else f"of {its[0]}, weights {its[1]}"
        if mine == its and self.views != (PLAIN_VIEW,):
            how += ", or views made in another way"
        # Another input size changes the position embedding, and with it the digest of the same weights.
        label = preprocessing_label(backbone) if mine[0] == its[0] else ""
        raise RequestError(
            f"this head was trained on tokens of {mine[0]}, weights {mine[1]} (cache {config.cache_key}); "
            f"the cache {cache.key} holds tokens {how}" + (f" (images of {label})" if label else "")
        )

    def _read(
        self, cache: Cache, split: str, *, labeled: bool = True
    ) -> tuple[TokenSource, npt.NDArray[np.int64]]:
        self.check(cache)
        memory = Budget.of(None, torch.device("cpu")).for_tokens(split)  # a larger split is streamed
        data = load_split(cache, split, self.config.selection, "cpu", memory, labeled=labeled)
        return data.tokens, data.labels

    def _take(
        self, features: Features | Mapping[str, Features], layers: Names | None, tokens: Names | None
    ) -> TokenSource:
        if not isinstance(features, Mapping):
            if len(self.views) > 1:
                raise RequestError(
                    f"this head was trained on {view_words(self.views)} and averages over them; give a mapping from the name of each "
                    "to its features, or a cache"
                )
            return InMemoryTokens(self._checked(features, layers, tokens))
        if {*features} != {*self.views}:
            raise RequestError(
                f"this head was trained on {view_words(self.views)}; the features are of {view_words(tuple(features)) if features else 'none'}"
            )
        parts = [self._checked(features[view], layers, tokens) for view in self.views]
        if len({len(part) for part in parts}) > 1:
            raise RequestError(
                f"views must have as many samples each, got {', '.join(str(len(part)) for part in parts)} of {'+'.join(self.views)}"
            )
        return InMemoryTokens(torch.cat([torch.as_tensor(part) for part in parts]), num_views=len(parts))

    def _checked(self, features: Features, layers: Names | None, tokens: Names | None) -> Features:
        """Return features ``[N, T, D]`` that fit the head."""
        if isinstance(layers, str):
            names = layers.split(",")
            layers = self.layers if layers == self.config.selection.name else [name.strip() for name in names]
        if isinstance(tokens, str):
            tokens = split_tokens(tokens)
        for what, given, own in (("layers", layers, self.layers), ("tokens", tokens, self.tokens)):
            if given is not None and tuple(given) != own:
                raise RequestError(
                    f"this head was trained on {what} {', '.join(own)} (cache {self.config.cache_key}); "
                    f"the features are of {', '.join(given)}"
                )
        shape, config = tuple(features.shape), self.config
        whole = (len(self.layers), len(self.tokens), config.width)
        if shape[1:] == whole and len(self.places) == whole[0] * whole[1]:
            features = features.reshape(shape[0], -1, config.width)
        elif shape[1:] != (config.num_tokens, config.width):
            raise RequestError(f"{self._wanted()}, not {list(shape)}")
        if isinstance(features, np.ndarray) and features.dtype == np.float64:
            features = features.astype(np.float32)
        return features

    def _wanted(self) -> str:
        config = self.config
        if not config.selection.same_in_every_layer:
            shape = f"[N, {config.num_tokens}, {config.width}] in the order of its places"
        else:
            shape = f"[N, {len(self.layers)}, {len(self.tokens)}, {config.width}]"
        return (
            f"this head takes features {shape}: layers {', '.join(self.layers)}, tap {self.tap}, "
            f"tokens {'+'.join(self.tokens)} "
            f"(cache {config.cache_key})"
        )

    def _outputs(self, source: TokenSource) -> torch.Tensor:
        return predict_samples(self._head, source, self._task)


def task_of(kind: str, num_outputs: int) -> Task:
    """The task of a saved head."""
    tasks: dict[str, type[SingleLabel | MultiLabel | Regression]] = {
        SINGLE_LABEL: SingleLabel,
        MULTI_LABEL: MultiLabel,
        REGRESSION: Regression,
    }
    if kind not in tasks:
        raise UnknownNameError("kind of targets", kind, tasks)
    return tasks[kind](num_outputs)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} classes ({shown})"
