"""Choose the one layer of ``best-layer`` on held-out samples of train.

The layers are compared by ridge, which has a closed form for all penalties at once: of a backbone with L layers this takes about as long
as a few exact solutions. The head on the chosen layer is the solved linear probe, so that it differs from the solved baseline in
nothing but the layer. The test split has no say.
"""

from math import isnan

from featcache.probing.inputs.memory import TRAIN
from featcache.probing.requests.jobs import HeadJob, final_job, fitted_jobs
from featcache.probing.run_plan import ProbeContext, Run
from featcache.probing.run_training import draw_train_samples, fit_run, load_split_of
from featcache.store.errors import DivergedError
from featcache.store.progress import Reporter, Silent


def choose_layer(context: ProbeContext, run: Run, reporter: Reporter) -> HeadJob:
    """Return the job on the layer with the best score on held-out samples; of equal layers, the deepest.

    Without held-out samples the last layer is taken, and a note says so. Layers whose fits diverge are left out, with a note.

    Raises:
        RequestError: train is too small.
        DivergedError: the fits of all layers diverged.
    """
    candidates = fitted_jobs(context.cache, run.job)
    scores: list[tuple[float, HeadJob]] = []
    metric = ""
    with reporter.progress(f"{run.title}: ridge on each layer", "layers") as update:
        for number, candidate in enumerate(candidates, 1):
            train = load_split_of(context, candidate, TRAIN)
            train = draw_train_samples(context, run, train, Silent())
            try:
                fitted = fit_run(context, run, candidate, train, Silent())
            except DivergedError as error:
                reporter.message(
                    f"note: {run.title}: layer {candidate.selection.layers[0]} is left out: {error}"
                )
            else:
                scores.append((fitted.validation, candidate))
                metric = fitted.task.metric
            update(number, len(candidates))
    if not scores:
        raise DivergedError(f"{run.title}: the fits of all layers diverged")
    if any(isnan(score) for score, _ in scores):
        reporter.message(
            f"note: {run.title}: no held-out samples to choose a layer with; the last layer is taken"
        )
        chosen = scores[-1][1]
    else:
        score, chosen = max(reversed(scores), key=lambda pair: pair[0])
        reporter.message(
            f"{run.title} chose layer {chosen.selection.layers[0]}: ridge has {metric} {score:.4f} on held-out samples"
        )
    return final_job(chosen, context.target_kind)
