"""`tats run pipeline … --json` against docs/json.md, with real runs of stages that take no time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import MagicMock

import pytest

from tats_core.errors import StageError
from tats_core.pipeline import graph as graphs
from tats_core.pipeline import runner
from tats_core.specs import NotIdentity, StrictModel
from tats_core.stages.base import StageContext, StageKind

DOCUMENT = Path(__file__).parents[2] / "docs" / "json.md"


class TalkConfig(StrictModel):
    words: int = 1
    fail: Annotated[bool, NotIdentity] = False


class Talk(StageKind[TalkConfig]):
    """Logs every kind of event."""

    name = "talk"
    Config = TalkConfig
    any_kind = True

    def run(self, config: TalkConfig, ctx: StageContext) -> None:
        ctx.events.params({"words": config.words})
        ctx.events.progress(step=1, steps=2, epoch=0, epochs=1, shown={"loss": 0.5, "lost": float("nan")})
        ctx.events.note("hello")
        if config.fail:
            raise StageError("it broke")
        (ctx.out / "words.txt").write_text(str(config.words))


@pytest.fixture(autouse=True)
def menu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "KINDS", {"talk": Talk()})
    monkeypatch.setattr(runner, "Tracking", MagicMock())
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "mine.yaml").write_text(
        "stages: {first: {kind: talk}, second: {kind: talk, needs: first, matrix: {words: [2, 3]}}}"
    )


def documented() -> dict[str, set[str]]:
    """Return event → keys as the document's table has them."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return {event: {"schema", "event", "time", *re.findall(r"`(\w+)`", keys)} for event, keys in rows}


def lines(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of an output, one in each line; NaN is not allowed."""
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_every_event_of_a_run_has_the_documented_keys(tats):
    finished = tats("run", "pipeline", "mine", "--json")
    failed = tats("run", "pipeline", "mine", "--set", "first.words=5", "--set", "second.fail=true", "--json")
    wrong = tats("run", "pipeline", "nine", "--json")
    estimated = tats("run", "pipeline", "mine", "--estimate", "--json")
    assert (finished.code, failed.code, wrong.code, estimated.code) == (0, 1, 2, 0)
    assert (finished.err, failed.err, wrong.err, estimated.err) == ("", "", "", "")
    seen = lines(finished.out + failed.out + wrong.out + estimated.out)
    keys = documented()
    for line in seen:
        assert line.keys() == keys[line["event"]], line["event"]
        assert line["schema"] == 1
    assert {line["event"] for line in seen} == keys.keys()


def test_a_run_prints_its_plan_its_stages_and_its_end(tats):
    printed = lines(tats("run", "pipeline", "mine", "--json").out)
    assert [line["event"] for line in printed[:3]] == ["plan", "run_started", "stage_started"]
    assert [(stage["name"], stage["action"], stage["after"]) for stage in printed[0]["stages"]] == [
        ("first", "run", []),
        ("second[2]", "run", ["first"]),
        ("second[3]", "run", ["first"]),
    ]
    (progress,) = [line for line in printed if line["event"] == "progress" and line["stage"] == "first"]
    assert progress["shown"] == {"loss": 0.5}
    ends = [line for line in printed if line["event"] == "stage_finished"]
    assert all(Path(line["folder"], "words.txt").exists() and not line["cached"] for line in ends)
    assert printed[-1]["stages"] == {"first": "finished", "second[2]": "finished", "second[3]": "finished"}
    assert (printed[-1]["status"], printed[-1]["resume"]) == ("finished", None)
    again = lines(tats("run", "pipeline", "mine", "--json").out)
    assert [line["cached"] for line in again if line["event"] == "stage_finished"] == [True] * 3


def test_a_failed_run_ends_with_its_error_and_the_command_that_resumes_it(tats):
    ended = lines(tats("run", "pipeline", "mine", "--set", "second.fail=true", "--json").out)[-1]
    assert (ended["status"], ended["error"]) == ("failed", "second[2]: it broke")
    assert ended["resume"] == "tats run pipeline mine --set second.fail=true"


def test_a_plan_alone_names_the_changes_and_runs_nothing(tats, tmp_path):
    tats("run", "pipeline", "mine")
    before = sorted((tmp_path / ".tats" / "stages").iterdir())
    (plan,) = lines(tats("run", "pipeline", "mine", "--plan", "--json", "--set", "first.words=4").out)
    assert plan["stages"][0]["changes"] == [{"component": "config", "name": "words", "old": 1, "new": 4}]
    assert sorted((tmp_path / ".tats" / "stages").iterdir()) == before


def test_an_error_is_one_object(tats):
    (error,) = lines(tats("run", "pipeline", "mine", "--json", "--fork", "mine:first").out)
    assert error["message"] == "--fork mine:first: must look like RUN:STAGE@STEP, as in demo:pretrain@120"
    (error,) = lines(tats("run", "pipeline", "mine", "--json", "--set", "first.wards=4").out)
    assert error["message"] == "pipelines/mine.yaml: first has no key 'wards'; did you mean 'words'?"
