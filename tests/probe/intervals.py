"""The interval of a task's own score."""

from featcache.probing.scoring.intervals import score_intervals


def score_interval(outputs, targets, task):
    """Low and high over test samples, or None."""
    return score_intervals(outputs, targets, task, task.scores(outputs, targets)).get(task.metric)
