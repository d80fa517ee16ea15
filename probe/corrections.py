"""Corrections that changed what some runs give. Each is part of the id of these runs alone: no other is trained again for it."""

from featcache.probe.protocol import INPUTS, L2_INPUT
from featcache.probe.request import CHOICE, Job

SCALING = "channels are constant by their own rounding"
"""Of standardized inputs: before, a channel was set to 0 where another one deviated a million times as much."""


def corrections(job: Job, usual_input: str, target_type: str) -> list[str]:
    """Name the corrections that concern a run.

    Args:
        job: head, tokens and input stage.
        usual_input: the protocol's input stage, taken where the job names none.
        target_type: single-label, multi-label or regression.
    """
    inputs = {job.input or usual_input}
    if job.solver == CHOICE and job.input is None:
        inputs = {*INPUTS}
    concerned = {SCALING: inputs != {L2_INPUT}}
    return [name for name, applies in concerned.items() if applies]
