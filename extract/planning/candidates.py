"""The specs that meet a request: precision, resizing and orientation may be left open, and whatever a cache has is taken."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featcache.extraction.requests.request import ExtractRequest
from featcache.store.errors import RequestError
from featcache.store.requests import AUTO
from featcache.store.spec import FP32, MIXED, PILLOW, UINT8_ANTIALIAS, CacheSpec

if TYPE_CHECKING:
    import torch

    from featcache.extraction.backbones.base import Backbone


def candidate_specs(
    request: ExtractRequest,
    backbone: "Backbone",
    device: "torch.device",
    identity: Mapping[str, Any],
    may_be_turned: bool = False,
) -> list[CacheSpec]:
    """Return the specs of caches that meet a request; a new cache gets the first.

    Args:
        request: the request.
        backbone: the loaded backbone.
        device: where it runs.
        identity: identity of the dataset.
        may_be_turned: whether images of the dataset may carry an EXIF orientation.

    Raises:
        RequestError: the preprocessing of the backbone lacks the version of resizing that is requested.
    """
    from featcache.devices.precision import fast_precision

    # bfloat16 weights are less exact than autocast, so they are taken only where they are asked for.
    precisions = _choices(request.precision, fast_precision(device), (FP32, MIXED))
    return [
        CacheSpec(backbone.spec.resized_by(resize).with_upright(upright), identity, request.dtype, precision)
        for upright in request.orientations(may_be_turned)
        for precision in precisions
        for resize in _resizes(request, backbone, device)
    ]


def _resizes(request: ExtractRequest, backbone: "Backbone", device: "torch.device") -> list[str]:
    from featcache.extraction.decoding.preprocessing import versions_of

    versions = versions_of(backbone.transform)
    if not versions:
        raise RequestError(
            f"{backbone.spec.architecture} takes images of {backbone.spec.channels} channels, which are resized by bicubic or bilinear "
            "interpolation with --crop center or none alone; give these"
        )
    if request.resize not in (AUTO, *versions):
        raise RequestError(
            f"--resize must be one of {', '.join((AUTO, *versions))} for {backbone.spec.architecture}, whose preprocessing has "
            f"no form of {request.resize}; got {request.resize}"
        )
    # On a CPU the forward pass takes many times as long as Pillow does, and there is nothing to gain.
    return _choices(request.resize, PILLOW if device.type == "cpu" else UINT8_ANTIALIAS, versions)


def _choices(requested: str, preferred: str, every: Sequence[str]) -> list[str]:
    """All choices, the preferred one first, for `auto`; else the requested one."""
    return [requested] if requested != AUTO else sorted(every, key=lambda choice: choice != preferred)
