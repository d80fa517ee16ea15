"""Sizes of the data of a fit, from which its memory is counted."""

from dataclasses import dataclass

from featcache.probing.protocols.protocol import Protocol


@dataclass(frozen=True)
class Size:
    """Sizes of the data of a fit."""

    num_samples: int
    """N, samples of train."""
    num_held_out: int
    """R, held-out samples."""
    width: int
    """D, width of a token."""
    num_outputs: int
    """O, classes or quantities."""

    @classmethod
    def of(
        cls, num_samples: int, width: int, num_outputs: int, protocol: Protocol, num_views: int = 1
    ) -> "Size":
        """Return the sizes for a train split and the held-out part of a protocol; each view of a sample counts as one of N."""
        share = 1.0 if protocol.num_folds(num_samples // num_views) > 1 else protocol.validation_fraction
        return cls(num_samples, int(share * num_samples), width, num_outputs)
