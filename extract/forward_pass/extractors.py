"""The forward passes of a run: plain or compiled, one after another or side by side, for every split."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from featcache.extraction.backbones.base import Backbone
from featcache.extraction.forward_pass.compiled import compiled_pass
from featcache.extraction.forward_pass.forward import Extractor, FeatureExtractor
from featcache.extraction.forward_pass.replicas import (
    ReplicaExtractor,
    replica_threads,
    replicas_and_threads,
    replicate,
)
from featcache.extraction.forward_pass.view_passes import ViewPasses, view_passes
from featcache.store.arrays import ArrayInfo
from featcache.store.journal import Plan


@dataclass(frozen=True)
class Forward:
    """How the backbone is run."""

    backbone: Backbone
    device: torch.device
    compile: bool
    say: Callable[[str], None]
    """Is told what a user should know."""

    @contextmanager
    def extractors(self, plan: Plan) -> Iterator[dict[str, ViewPasses]]:
        """The passes of every split; splits and views that hold the same arrays share an extractor.

        Raises:
            BackboneError: the pass is to be compiled, and cannot be.
        """
        count, threads = (1, 0) if self.compile else replicas_and_threads(self.device)
        if count == 1:
            yield view_passes(
                self.backbone,
                plan.inventory,
                lambda backbone, wanted: self._extractor(backbone, plan, wanted),
            )
            return
        with replica_threads(count, threads) as pool:

            def side_by_side(original: Backbone, wanted: list[ArrayInfo]) -> Extractor:
                def make(backbone: Backbone) -> FeatureExtractor:
                    return self._extractor(backbone, plan, wanted)

                replicas = replicate(original, count)
                spare = make(original)
                return spare if replicas is None else ReplicaExtractor(pool, replicas, make, spare)

            yield view_passes(self.backbone, plan.inventory, side_by_side)

    def _extractor(self, backbone: Backbone, plan: Plan, wanted: list[ArrayInfo]) -> FeatureExtractor:
        precision = plan.spec.precision
        compiled = (
            compiled_pass(backbone, self.device, precision, wanted, plan.batch_size, self.say)
            if self.compile
            else None
        )
        return FeatureExtractor(backbone, self.device, precision, wanted, plan.spec.dtype, self.say, compiled)
