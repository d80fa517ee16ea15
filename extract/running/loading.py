"""Load the backbone of a run onto its device."""

from dataclasses import dataclass

import torch

from featcache.devices.choice import choose_device
from featcache.extraction.backbones import load_backbone, loading_notes
from featcache.extraction.backbones.base import Backbone
from featcache.extraction.forward_pass.capacity import enough_memory
from featcache.extraction.forward_pass.device_errors import one_line_device_errors
from featcache.extraction.requests.inputs import Inputs
from featcache.store.errors import RequestError
from featcache.store.progress import Reporter


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone in the memory of its device."""

    backbone: Backbone
    device: torch.device


def load(inputs: Inputs, reporter: Reporter) -> LoadedBackbone:
    """Load the backbone, or take the custom one, and move it to the device.

    Raises:
        RequestError: there is no such device.
        BackboneError: the backbone cannot be loaded, or does not fit into the memory of the device.
    """
    request = inputs.request
    device = choose_device(request.device)
    backbone = inputs.custom_backbone
    if backbone is None:
        origin = request.weights or inputs.model.folder or "the Hugging Face Hub"
        reporter.message(f"loading {inputs.model.explicit} on {device}, weights from {origin}")
        changes = request.preprocessing_of(inputs.model)
        backbone = load_backbone(
            inputs.model,
            request.weights,
            request.weights_key,
            changes,
            trust_remote_code=request.trust_remote_code,
        )
        for note in loading_notes(inputs.model, backbone):
            reporter.message(f"note: {note}")
    if backbone.spec.channels != inputs.source.channels:
        raise RequestError(
            f"{inputs.model.explicit} takes images of {backbone.spec.channels} channels, and those of {inputs.source.name} are read with "
            f"{inputs.source.channels}; --channels is for local checkpoints of timm (--weights) that take as many"
        )
    with one_line_device_errors(device), enough_memory(device):
        backbone.module.to(device)
    return LoadedBackbone(backbone, device)
