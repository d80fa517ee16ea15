"""The forward passes of a run: plain or compiled, one after another or side by side, for every split."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from featcache.extraction.backbones.base import Backbone
from featcache.extraction.forward_pass.compiled import compiled_pass
from featcache.extraction.forward_pass.encoding import Clipping, Int8Encoder, computed_dtype
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
from featcache.store.quantization import Scales


@dataclass(frozen=True)
class Forward:
    """How the backbone is run."""

    backbone: Backbone
    device: torch.device
    compile: bool
    say: Callable[[str], None]
    """Is told what a user should know."""

    @contextmanager
    def extractors(
        self,
        plan: Plan,
        scales: Mapping[str, Scales] | None = None,
        clipping: Clipping | None = None,
    ) -> Iterator[dict[str, ViewPasses]]:
        """The passes of every split; splits and views that hold the same arrays share an extractor.

        Args:
            plan: what is extracted.
            scales: the scales of int8 arrays by name; without them features come as float32 where int8 is planned.
            clipping: counts what is clipped.

        Raises:
            BackboneError: the pass is to be compiled, and cannot be.
        """
        encoding = (scales or {}, clipping or Clipping())
        count, threads = (1, 0) if self.compile else replicas_and_threads(self.device)
        if count == 1:
            yield view_passes(
                self.backbone,
                plan.inventory,
                lambda backbone, wanted: self._extractor(backbone, plan, wanted, *encoding),
            )
            return
        with replica_threads(count, threads) as pool:

            def side_by_side(original: Backbone, wanted: list[ArrayInfo]) -> Extractor:
                def make(backbone: Backbone) -> FeatureExtractor:
                    return self._extractor(backbone, plan, wanted, *encoding)

                replicas = replicate(original, count)
                spare = make(original)
                return spare if replicas is None else ReplicaExtractor(pool, replicas, make, spare)

            yield view_passes(self.backbone, plan.inventory, side_by_side)

    def _extractor(
        self,
        backbone: Backbone,
        plan: Plan,
        wanted: list[ArrayInfo],
        scales: Mapping[str, Scales],
        clipping: Clipping,
    ) -> FeatureExtractor:
        precision = plan.spec.precision
        compiled = (
            compiled_pass(backbone, self.device, precision, wanted, plan.batch_size, self.say)
            if self.compile
            else None
        )
        dtype = computed_dtype(plan.spec.dtype)
        encoder = Int8Encoder(scales, wanted, clipping) if scales else None
        return FeatureExtractor(backbone, self.device, precision, wanted, dtype, self.say, compiled, encoder)
