"""What results say of preprocessing: where caches of one model and dataset differ in it, and beside the published scores."""

from dataclasses import replace

import pytest

from featcache.cli.probe_table import rows_table
from featcache.probing.notes import notes
from featcache.probing.plots.collect import draw
from featcache.probing.published import preprocessing_note
from featcache.probing.report.groups import group_rows
from featcache.probing.report.preprocessing import preprocessing_words
from featcache.probing.report.reference import TRAINED_PROBE
from featcache.probing.report.views import VIEWS, Against
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.results.rows import ResultRow
from featcache.store.preprocessing import distinguish, preprocessing_parts
from featcache.store.reading.reader import open_cache
from featcache.store.spec import BackboneSpec
from support.caches import make_content, make_plan, write_cache

from .result_rows import FIELDS, made_row, made_rows


def dinov2(interpolation="bilinear", size=224, crop_pct=224 / 256, positions="as stored") -> BackboneSpec:
    stated = {
        "library": "timm",
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": "center",
        "input_size": [3, size, size],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "position_embedding": positions,
    }
    return BackboneSpec("timm:vit_small_patch14_dinov2", "0" * 64, 12, 384, size, stated)


OWN, PAPER, LARGE = (
    preprocessing_parts(spec)
    for spec in (dinov2("bicubic"), dinov2(), dinov2("bicubic", 518, 1.0, "bicubic"))
)


def test_only_what_differs_is_told():
    assert distinguish([OWN, OWN]) == ["", ""]
    assert distinguish([OWN, PAPER]) == ["bicubic", "bilinear"]
    assert distinguish([OWN, LARGE]) == ["224 px, of 256 px", "518 px, of 518 px"]
    positions = [preprocessing_parts(dinov2(positions=method)) for method in ("bicubic", "as stored")]
    assert distinguish(positions) == ["position embedding bicubic", "position embedding as stored"]


def test_rows_of_caches_that_differ_are_told_apart_and_no_others():
    here = {"cache_key": "a" * 12, "preprocessing": OWN}
    there = {"cache_key": "b" * 12, "preprocessing": PAPER}
    rows = [made_row(0.5, **here), made_row(0.6, **there), made_row(0.7, dataset="other", **there)]
    assert preprocessing_words(rows) == {"a" * 12: "bicubic", "b" * 12: "bilinear"}
    assert preprocessing_words(rows[1:]) == {}
    assert preprocessing_words([made_row(0.5), rows[1]])["a" * 12] == "preprocessing not recorded"
    assert preprocessing_words([made_row(0.5), made_row(0.5, cache_key="b" * 12)]) == {}


def test_an_alias_and_the_explicit_name_are_one_model():
    explicit = "timm:vit_small_patch14_dinov2.lvd142m"
    rows = [
        made_row(0.5, model="dinov2-vit-s-14", cache_key="a" * 12, preprocessing={"model": explicit, **OWN}),
        made_row(0.5, model=explicit, cache_key="b" * 12, preprocessing={"model": explicit, **LARGE}),
        made_row(0.5, model="dinov2-vit-s-14", cache_key="c" * 12),
    ]
    assert preprocessing_words(rows[:2]) == {"a" * 12: "224 px, of 256 px", "b" * 12: "518 px, of 518 px"}
    assert preprocessing_words(rows)["c" * 12] == "preprocessing not recorded"
    others = {"model": "timm:vit_small_patch16_224.dino", **PAPER}
    assert preprocessing_words([rows[0], made_row(0.5, cache_key="d" * 12, preprocessing=others)]) == {}


def test_a_row_of_before_is_read_and_a_forged_one_is_not():
    assert ResultRow.from_dict(made_row(0.5).to_dict()).preprocessing == {}
    assert ResultRow.from_dict({**made_row(0.5).to_dict(), "preprocessing": {"size": 7}}) is None
    kept = made_row(0.5, preprocessing=OWN)
    assert ResultRow.from_dict(kept.to_dict()) == kept
    assert "preprocessing" not in FIELDS


def test_views_tables_and_plots_name_it():
    here = {"cache_key": "a" * 12, "preprocessing": OWN}
    there = {"cache_key": "b" * 12, "preprocessing": PAPER}
    best = {"head": "attentive", "num_heads": 6, "layers": "all", "tokens": ["cls", "ap"]}
    rows = [
        row
        for cache in (here, there)
        for row in (*made_rows([0.5, 0.6], **cache), *made_rows([0.7, 0.9], **best, **cache))
    ]
    groups = group_rows(rows)
    against = Against(TRAINED_PROBE, groups)
    for view in ("summary", "runs"):
        assert {line[1] for line in VIEWS[view](groups, against).rows} == {
            "tiny (bicubic)",
            "tiny (bilinear)",
        }
    for view in ("pivot", "gains"):
        caches = [line[1] for line in VIEWS[view](groups, against).rows[:2]]
        assert caches == ["a" * 12 + " (bicubic)", "b" * 12 + " (bilinear)"]
    _, lines = rows_table(rows, grid=True)
    assert {line[1] for line in lines} == {"tiny (bicubic)", "tiny (bilinear)"}
    ((_, figure),) = draw("gains", None, groups, against)
    ticks = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert any("bilinear" in tick for tick in ticks), ticks


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (dinov2(), "dinov2-vit-s-14: preprocessing as in the published runs"),
        (dinov2(positions="bicubic, antialiased"), "dinov2-vit-s-14: preprocessing as in the published runs, but the position embedding"),
        (dinov2("bicubic"), "dinov2-vit-s-14: not the preprocessing of the published runs (bicubic here, bilinear there); `featcache"),
        (dinov2("bilinear", 518), "dinov2-vit-s-14: not the preprocessing of the published runs (518 px here, 224 px there; of 592 px"),
    ],
)  # fmt: skip
def test_the_note_beside_published_scores_and_under_the_papers_protocol(tmp_path, spec, text):
    assert preprocessing_note("dinov2-vit-s-14", preprocessing_parts(spec)).startswith(text)
    rows = made_rows(
        [0.5],
        model="dinov2-vit-s-14",
        dataset="dtd",
        protocol="paper",
        preprocessing=preprocessing_parts(spec),
    )
    table = VIEWS["published"](group_rows(rows), Against(TRAINED_PROBE, []))
    assert next(note for note in table.notes if note.startswith("dinov2")).startswith(text)

    plan = make_plan(width=16)
    backbone = replace(plan.spec.backbone, preprocessing=spec.preprocessing, input_size=spec.input_size)
    plan = replace(plan, spec=replace(plan.spec, backbone=backbone))
    provenance = {"model_names": ["dinov2-vit-s-14", "timm:vit_small_patch14_dinov2.lvd142m"]}
    write_cache(tmp_path / "cache", plan, make_content(plan), provenance=provenance)
    found = list(notes(open_cache(tmp_path / "cache"), ProbeRequest(protocol="paper-parity", heads="linear")))
    assert found[0].startswith(f"paper-parity: {text}")
    assert not list(notes(open_cache(tmp_path / "cache"), ProbeRequest(heads="linear")))
