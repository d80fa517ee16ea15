"""What only a GPU can tell about featcache, in under ten minutes: `make gpu-check`.

Twelve stages, one line of JSON each. A stage that fails is reported, and the others run. Nothing is fetched: weights are random, and
images are made. Exit status: 0 where no stage failed, 1 where one did, 2 without a GPU.
"""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [
    str(HERE),
    str(HERE.parent),
    str(HERE.parent.parent / "tests"),
    str(HERE.parent.parent / "tests" / "probe"),
]

import torch  # noqa: E402
from stage import Check, Found, Stage, run_stages, temporary_folder  # noqa: E402
from stages_extraction import correct, forward, out_of_memory, speed  # noqa: E402
from stages_machine import machine, races, suite  # noqa: E402
from stages_training import budget, heads, solver, table, trainer  # noqa: E402

from support.pretended_cuda import pretended_cuda  # noqa: E402

STAGES = (
    Stage(machine, 10),
    Stage(suite, 40),
    Stage(correct, 25),
    Stage(forward, 60),
    Stage(speed, 60),
    Stage(out_of_memory, 30),
    Stage(trainer, 45),
    Stage(heads, 30),
    Stage(solver, 40),
    Stage(races, 20),
    Stage(budget, 10),
    Stage(table, 60),
)
LIMIT_S = 570.0
PRETENDED_BYTES = 2**29
"""Memory of a pretended GPU; stages fill it, and it is memory of this machine."""


def chosen(names: str) -> list[Stage]:
    """Return the stages that are named, or all.

    Raises:
        ValueError: a name is unknown.
    """
    known = {stage.name: stage for stage in STAGES}
    wanted = [name for name in names.split(",") if name] or list(known)
    for name in wanted:
        if name not in known:
            raise ValueError(f"unknown stage {name!r}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def summary(results: dict[str, Found]) -> str:
    """Return a table of the stages in Markdown."""
    lines = ["| stage | result | seconds |", "|---|---|---|"]
    for name, found in results.items():
        ok = found.get("ok")
        result = "skipped" if "skipped" in found else "measured" if ok is None else "ok" if ok else "FAILED"
        lines.append(f"| {name} | {result} | {found['stage_s']} |")
    return "\n".join(lines)


def main() -> int:
    """Run the stages; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--toy", action="store_true", help="toy sizes, without a GPU too: only whether it runs"
    )
    parser.add_argument(
        "--pretended",
        action="store_true",
        help="with --toy, on a pretended GPU: whether the lines for GPUs run",
    )
    names = ",".join(stage.name for stage in STAGES)
    parser.add_argument("--only", default="", metavar="STAGES", help=f"some stages: {names}")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "featcache-gpu-check.jsonl")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds for all stages")
    arguments = parser.parse_args()
    try:
        stages = chosen(arguments.only)
    except ValueError as error:
        parser.error(str(error))
    if arguments.pretended and (torch.cuda.is_available() or not arguments.toy):
        parser.error("--pretended goes with --toy, on a machine without a GPU")
    if not torch.cuda.is_available() and not arguments.toy:
        print("no GPU: --toy runs the stages in toy size on the CPU", file=sys.stderr)
        return 2
    torch.set_flush_denormal(True)
    with ExitStack() as stack:
        if arguments.pretended:
            stack.enter_context(pretended_cuda(capacity_bytes=PRETENDED_BYTES))
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        folder, file = stack.enter_context(temporary_folder()), stack.enter_context(arguments.out.open("w"))
        check = Check(device, arguments.toy, arguments.limit_s, Path(folder), arguments.pretended)
        results = run_stages(check, stages, file)
    print(summary(results))
    print(f"results: {arguments.out}")
    return 0 if all(found.get("ok", True) for found in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
