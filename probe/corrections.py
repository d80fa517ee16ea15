"""Corrections that changed the results of some runs. Each is part of the ids of these runs alone, so no other run is repeated."""

from featcache.probing.protocols.protocol import INPUTS, L2_INPUT
from featcache.probing.requests.jobs import HeadJob
from featcache.probing.requests.request import ADAMW, CHOICE, EXACT
from featcache.probing.scoring.kinds import MULTI_LABEL, SINGLE_LABEL

SCALING = "channels are constant by their own rounding"
"""Concerns standardized inputs: before, a channel became 0 beside one with a million times its deviation."""

LABEL_SETS = "label sets are held out label by label, the rare ones first"
PENALTY = "tied penalties go to the likelier, and the path goes on while its end is chosen"
TIES = "ties go to the lower class, and five guesses hold no class without a vote"
"""Concerns heads whose logits tie exactly, such as votes of neighbors; logits of trained heads rarely do."""


def corrections(job: HeadJob, usual_input: str, target_type: str) -> list[str]:
    """Name the corrections that concern a run.

    Args:
        job: head, tokens and input transform.
        usual_input: the protocol's input transform, for jobs that name none.
        target_type: single-label, multi-label or regression.
    """
    inputs = {job.input or usual_input}
    if job.solver == CHOICE and job.input is None:
        inputs = {*INPUTS}
    solved = job.solver == EXACT or (job.solver == CHOICE and target_type == SINGLE_LABEL)
    concerned = {
        PENALTY: solved,
        LABEL_SETS: target_type == MULTI_LABEL,
        SCALING: inputs != {L2_INPUT},
        TIES: target_type == SINGLE_LABEL and job.solver != ADAMW,
    }
    return [name for name, applies in concerned.items() if applies]
