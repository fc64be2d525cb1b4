"""The shipped pipelines: each validates, says what it needs and what came out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tats_core import specs
from tats_core.pipeline import graph, spec

MENU = Path(__file__).resolve().parent.parent / "pipelines"
SHIPPED = sorted(MENU.glob("*.yaml"))
FULL = ("full_hmdb51", "full_k400", "full_ssv2", "full_ucf101")


def test_the_menu_is_what_the_readme_promises() -> None:
    assert {path.stem for path in SHIPPED} >= {"demo", *FULL}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_pipeline_validates(path: Path) -> None:
    assert graph.build(spec.load(str(path))).instances


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_pipeline_opens_with_its_command_and_its_result(path: Path) -> None:
    header = [line for line in path.read_text().split("\nname:")[0].splitlines() if line.startswith("#")]
    assert f"tats run pipeline {path.stem}" in header[0]
    assert "result" in " ".join(header).lower()
    assert specs.read(path)["title"]


@pytest.mark.parametrize("name", FULL)
def test_the_real_recipes_are_those_of_the_paper_scale_on_all_four_benchmarks(name: str) -> None:
    built = graph.build(spec.load(str(MENU / f"{name}.yaml"))).instances
    pretrain = built["pretrain"].config.model_dump()
    tokens = 16 // 2 * (224 // 16) ** 2
    assert (pretrain["model"]["width"], pretrain["model"]["depth"]) == (768, 12)
    assert pretrain["clip"] == {"frames": 16, "size": 224, "tubelet": 2, "patch": 16}
    assert round((1 - pretrain["sampler"]["mask_ratio"]) * tokens) == 78
    assert pretrain["batch_size"] % pretrain["workers"] == 0
    tested = {one.config.model_dump()["benchmark"] for one in built.values() if one.kind.name == "evaluate"}
    assert tested == {"ssv2", "kinetics400", "ucf101", "hmdb51"}


FOLDS = ({"fold": (1, 2, 3)}.items(), {"fold": (1,)}.items())
SMALL = {
    "splits.matrix": FOLDS,
    "pretrain.workers": (32, 8),
    "pretrain.batch_size": (2048, 192),
    "finetune_ssv2.workers": (32, 8),
    "finetune_k400.workers": (32, 8),
}


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("full_k400", {"pretrain.benchmark": ("ssv2", "kinetics400")}),
        (
            "full_ucf101",
            SMALL
            | {"pretrain.benchmark": ("ssv2", "ucf101"), "pretrain.epochs": (800, 3200)}
            | {"pretrain.optimizer.base_lr": (1.5e-4, 3e-4)},
        ),
        (
            "full_hmdb51",
            SMALL
            | {"pretrain.benchmark": ("ssv2", "hmdb51"), "pretrain.epochs": (800, 4800)}
            | {"pretrain.optimizer.base_lr": (1.5e-4, 1e-3)},
        ),
    ],
)
def test_the_recipes_differ_from_that_of_ssv2_in_these_keys_and_no_other(
    name: str, differs: dict[str, tuple[object, object]]
) -> None:
    ssv2, other = (
        {
            name: {"needs": stage.needs, "matrix": stage.matrix.items(), **stage.config}
            for name, stage in spec.load(str(MENU / f"{pipeline}.yaml")).stages.items()
        }
        for pipeline in ("full_ssv2", name)
    )
    before, after = specs.flatten(ssv2), specs.flatten(other)
    assert before.keys() == after.keys()
    assert {key: (before[key], after[key]) for key in before if before[key] != after[key]} == differs


def test_ucf101_and_hmdb51_are_tuned_and_tested_on_each_of_their_three_splits() -> None:
    built = graph.build(spec.load(str(MENU / "full_ssv2.yaml"))).instances
    for benchmark in ("ucf101", "hmdb51"):
        for fold in ("1", "2", "3"):
            tuned, tested = (built[f"{kind}_{benchmark}[{fold}]"] for kind in ("finetune", "evaluate"))
            assert set(tuned.needs) == {"pretrain", f"splits[{fold}]"}
            assert set(tested.needs) == {f"splits[{fold}]", tuned.name}
            assert built[f"splits[{fold}]"].config.fold == int(fold)
    assert built["pretrain"].needs == ("data",)
    assert len([name for name in built if name.startswith("pretrain")]) == 1
