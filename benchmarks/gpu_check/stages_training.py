"""Stages of probing: updates of a sweep, every head, the exact solver, the budget of memory, and the paper's table."""

from dataclasses import replace

import numpy as np
import torch
from stage import Check, Found
from timing import Document
from trainer_caches import TOY_PROTOCOL, paper_table
from trainer_sweeps import ATTENTIVE, MEMBERS, Setting, Sweep
from trainer_sweeps import TOY as TOY_SWEEPS

from featcache.probing.head_contract import LAYERS, SHORT, TOKENS, clusters
from featcache.probing.heads import HEADS
from featcache.probing.heads.scratch import release
from featcache.probing.inputs.memory import Budget
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import PAPER
from featcache.probing.solver.logistic import fit_logistic
from featcache.probing.training.array_fitting import array_job, fit_head
from featcache.probing.training.prediction import predict
from solver import LONG, TOY, WIDE, make_features

# CIFAR-100's batches of the protocol, and both heads of the paper at Flowers-102's.
SETTINGS = (
    *ATTENTIVE,
    Setting(2048, 50, 1024, 100, MEMBERS),
    Setting(204, 48, 1024, 102, PAPER.members(has_dropout=False), head="linear"),
)
AGREEMENT = 0.85
"""Least part of the samples for which two devices must predict the same class: draws differ by device."""
SAME_OBJECTIVE = 1e-3
TARGETS = ("single-label", "multi-label", "regression")


def trainer(check: Check) -> Found:
    """Measure one update of all members of a sweep: time, kernels, and memory for each parameter of a member."""
    found: Found = {}
    for setting in TOY_SWEEPS[:1] if check.toy else SETTINGS:
        release()
        check.clean()
        name = f"{setting.head}, {setting.name}"
        try:
            found[name] = _update(check, setting)
        except torch.OutOfMemoryError as error:
            found[name] = {"out of memory": str(error)[:200]}
    return found


def _update(check: Check, setting: Setting) -> Document:
    before = check.allocated_bytes()
    check.reset_peak()
    sweep = Sweep(setting, "fp32" if check.toy else "bf16", check.device)
    seconds = check.seconds(sweep.step, runs=8)
    parameters = sweep.num_parameters
    row: Document = {"ms an update": round(1e3 * seconds, 2), "parameters of all members": parameters}
    if check.on_gpu:
        if not check.pretended:
            row["kernels"], row["share in which the GPU works"] = _profile(check, sweep, seconds)
        row["peak bytes a parameter, tokens not counted"] = round(
            (check.peak_bytes() - before - sweep.token_bytes) / parameters, 1
        )
    return row


def _profile(check: Check, sweep: Sweep, seconds: float) -> tuple[int, float]:
    """Return the kernels of an update, and the part of its time in which they run."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        sweep.step()
        check.synchronize()
    kernels = [event for event in profiler.events() if "CUDA" in str(event.device_type)]
    return len(kernels), round(sum(event.device_time for event in kernels) / 1e6 / seconds, 3)


def heads(check: Check) -> Found:
    """Fit every head to every type of target on the device, and compare its predictions with those of the CPU."""
    tokens, labels = clusters()
    by_target = {
        "single-label": labels,
        "multi-label": np.stack([labels == 0, labels != 1], 1).astype(np.uint8),
        "regression": 100 + 10 * np.stack([labels, -labels], 1).astype(np.float32),
    }
    short = replace(SHORT, min_epochs=2, min_steps=8, learning_rates=(1e-2,)) if check.toy else SHORT
    failed: list[str] = []
    agreement: dict[str, float] = {}
    listed = [info for info in HEADS.values() if info.listed and info.fits_arrays]
    for info in listed[:3] if check.toy else listed:
        for target in TARGETS:
            if target not in info.kinds:
                continue
            outputs = []
            try:
                for device in (check.device, torch.device("cpu")):
                    source = InMemoryTokens(torch.from_numpy(tokens).half(), device)
                    job = array_job(info, TOKENS, LAYERS)
                    fitted = fit_head(job, source, by_target[target], protocol=short, device=device)
                    outputs.append(predict(fitted.head, source, torch.arange(len(tokens)), 64).float().cpu())
            except Exception as error:
                failed.append(f"{info.name}, {target}: {type(error).__name__}: {str(error)[:200]}")
                continue
            if target == "single-label":
                same = outputs[0].argmax(1) == outputs[1].argmax(1)
                agreement[info.name] = round(float(same.float().mean()), 3)
    ok = not failed and min(agreement.values(), default=0.0) > AGREEMENT
    return {"ok": ok, "failed": failed, "part with the same class on a CPU": agreement}


def solver(check: Check) -> Found:
    """Solve whole penalty paths on the device, and compare the minimum with the CPU's."""
    found: Found = {}
    ok = True
    for shape in TOY[:1] if check.toy else (WIDE, LONG):
        features, labels = (tensor.to(check.device) for tensor in make_features(shape))
        fits = fit_logistic(features, labels, shape.classes)
        seconds = check.seconds(lambda f=features, y=labels, c=shape.classes: fit_logistic(f, y, c), 1, 0)
        row: Found = {
            "seconds of a path": round(seconds, 2),
            "penalties": len(fits),
            "of which converged": sum(fit.certificate.converged for fit in fits),
        }
        ok = ok and all(fit.certificate.converged for fit in fits)
        if shape.samples < 2000:  # the CPU takes its time with more
            part = features[:, :4096]
            (here,) = fit_logistic(part, labels, shape.classes, [1e-3])
            (there,) = fit_logistic(part.cpu(), labels.cpu(), shape.classes, [1e-3])
            difference = abs(here.certificate.objective / there.certificate.objective - 1)
            row["relative difference of the minimum"] = difference
            ok = ok and difference < SAME_OBJECTIVE
        found[f"{shape.samples} x {shape.tokens * shape.width}, {shape.classes} classes"] = row
    return {"ok": ok, **found}


def budget(check: Check) -> Found:
    """Compare the memory budget of a probe before and after a large tensor: what the allocator keeps is free."""
    before = Budget.of(None, check.device).total
    free = torch.cuda.mem_get_info(check.device)[0] if check.on_gpu else 2**20
    tensor = torch.empty(int(0.4 * free), dtype=torch.uint8, device=check.device)
    del tensor
    after = Budget.of(None, check.device).total
    return {"ok": before == after, "GB before": round(before / 1e9, 2), "GB after": round(after / 1e9, 2)}


def table(check: Check) -> Found:
    """Train the ten heads of the paper's table, full sweeps, at CIFAR-100's size for a ViT-L/14."""
    if check.toy:
        return {**paper_table({"train": 200, "test": 100}, 4, 32, 5, check.device, TOY_PROTOCOL, num_sets=1)}
    rows = {"train": 50_000, "test": 10_000}
    return {**paper_table(rows, 24, 1024, 100, check.device, "paper", stop=lambda: check.left_s() < 30)}
