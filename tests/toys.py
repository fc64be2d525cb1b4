"""Stage kinds that take no time, a display that records its calls, and a tracker that does nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from tats_core.errors import StageError, Stopped
from tats_core.pipeline import graph as graphs
from tats_core.pipeline import runner, spec
from tats_core.pipeline.observers import Display, Observer
from tats_core.pipeline.plan import Plan
from tats_core.pipeline.spec import Pipeline
from tats_core.specs import NotIdentity, StrictModel
from tats_core.stages.base import Preflight, StageContext, StageKind
from tats_core.store.run import RunRecord, StageRecord


class Shape(StrictModel):
    preset: str = "small"
    depth: int = 1


class MakeConfig(StrictModel):
    value: int = 1
    shape: Shape = Shape()
    decode_workers: Annotated[int, NotIdentity] = 1


class Make(StageKind[MakeConfig]):
    """Writes its value; the root of most test pipelines."""

    name = "make"
    Config = MakeConfig

    def run(self, config: MakeConfig, ctx: StageContext) -> None:
        (ctx.out / "value.txt").write_text(str(config.value))
        ctx.events.metrics(1, {"value": config.value})
        ctx.events.progress(step=1, steps=1, epoch=1, epochs=1, shown={"value": config.value})


class GrowConfig(StrictModel):
    benchmark: str = "none"
    init: str = "pretrained"
    add: int = 1
    cpus: Annotated[int, NotIdentity] = 1
    fail: Annotated[str, NotIdentity] = ""
    missing: str = ""


class Grow(StageKind[GrowConfig]):
    """Adds to the value of the `make` stage; fails, waits or is stopped on request."""

    name = "grow"
    Config = GrowConfig
    ran: ClassVar[list[str]] = []
    hook: ClassVar[Callable[[StageContext], None]] = staticmethod(lambda ctx: None)

    def reads(self, config: GrowConfig) -> tuple[str, ...]:
        return ("make",) if config.init == "pretrained" else ()

    def cpus(self, config: GrowConfig) -> int:
        return config.cpus

    def preflight(self, config: GrowConfig, ctx: Preflight) -> list[str]:
        return [config.missing] if config.missing else []

    def run(self, config: GrowConfig, ctx: StageContext) -> None:
        Grow.ran.append(ctx.name)
        Grow.hook(ctx)
        if config.fail == "bug":
            raise KeyError("a bug")
        if config.fail and not (ctx.out / "tried").exists():
            if config.fail == "once":
                (ctx.out / "tried").touch()
            raise StageError("it broke")
        if ctx.stop.is_set():
            raise Stopped
        value = int((ctx.input("make").path / "value.txt").read_text()) if ctx.inputs("make") else 0
        (ctx.out / "value.txt").write_text(str(value + config.add))


class SumConfig(StrictModel):
    pass


class Sum(StageKind[SumConfig]):
    """Gathers the values of all `grow` stages by name."""

    name = "sum"
    Config = SumConfig
    gathers = True

    def reads(self, config: SumConfig) -> tuple[str, ...]:
        return ("grow",)

    def run(self, config: SumConfig, ctx: StageContext) -> None:
        values = {output.name: int((output.path / "value.txt").read_text()) for output in ctx.inputs("grow")}
        (ctx.out / "values.json").write_text(json.dumps(values))


class RecordingUI(Display):
    """Records every call as (what, name, more)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.on_progress: Callable[[], None] = lambda: None

    def started(self, plan: Plan, record: RunRecord) -> None:
        self.calls.append(("started", "", plan))

    def stage_started(self, stage: StageRecord, folders: tuple[Path, ...]) -> None:
        self.calls.append(("stage_started", stage.name, None))

    def params(self, name: str, values: Mapping[str, Any]) -> None:
        self.calls.append(("params", name, values))

    def progress(self, name: str, event: Mapping[str, Any]) -> None:
        self.calls.append(("progress", name, event))
        self.on_progress()

    def note(self, name: str, text: str) -> None:
        self.calls.append(("note", name, text))

    def stage_finished(self, name: str, seconds: float, cached: bool) -> None:
        self.calls.append(("stage_finished", name, cached))

    def stage_failed(self, name: str, error: str) -> None:
        self.calls.append(("stage_failed", name, error))

    def finished(self, record: RunRecord) -> None:
        self.calls.append(("finished", "", record.status))

    def of(self, what: str) -> list[tuple[str, Any]]:
        return [(name, more) for kind, name, more in self.calls if kind == what]


class NoTracker(Observer):
    """In place of MLflow, whose database takes seconds to create."""

    def __init__(self, home: Path, record: RunRecord) -> None:
        pass


@pytest.fixture(autouse=True)
def toy_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "KINDS", {kind.name: kind for kind in (Make(), Grow(), Sum())})
    monkeypatch.setattr(Grow, "ran", [])


@pytest.fixture
def no_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Tracking", NoTracker)


@pytest.fixture
def ui() -> RecordingUI:
    return RecordingUI()


Load = Callable[..., Pipeline]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that writes a pipeline's YAML and loads it, as from a working directory."""
    folder = tmp_path / "work"
    (folder / "pipelines").mkdir(parents=True)
    monkeypatch.chdir(folder)

    def loaded(text: str, *sets: str, name: str = "toy") -> Pipeline:
        (folder / "pipelines" / f"{name}.yaml").write_text(text)
        return spec.load(name, sets)

    return loaded
