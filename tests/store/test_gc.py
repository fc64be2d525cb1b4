from __future__ import annotations

import json
import random
import shutil
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tats_core.store import gc
from tats_core.store.gc import DAY, Policy, collect, find
from tats_core.store.journal import Sent, Spool
from tats_core.store.outputs import StageKey, StageStore
from tats_core.store.run import RunRecord, StageRecord

NOW = time.time()


def key(value: int) -> StageKey:
    return StageKey({"kind": "make/1", "config": {"value": value}, "code": {}, "inputs": [], "external": {}})


class Store:
    """A project folder made up by hand: outputs and work folders by number, runs that use them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = StageStore(home)
        self.runs = 0

    def folder(self, value: int) -> Path:
        return self.store.folder("make", key(value))

    def partial(self, value: int) -> Path:
        partial = self.store.begin(self.folder(value), fresh=False)
        (partial / "half.txt").write_text("half")
        return partial

    def output(self, value: int, run: str = "gone") -> Path:
        partial = self.partial(value)
        origin = {"pipeline": "toy", "stage": f"make[{value}]", "run": run}
        self.store.commit(partial, self.folder(value), key(value), origin, {})
        return self.folder(value)

    def run(
        self, *values: int, status: Any = "finished", days_ago: float = 0, pipeline: str = "toy"
    ) -> RunRecord:
        """Record a run that used these outputs; of one that did not finish, the last stage is unfinished."""
        self.runs += 1
        stages = {}
        for value in values:
            done = status == "finished" or value != values[-1]
            stages[f"make[{value}]"] = StageRecord(
                f"make[{value}]",
                "make",
                "make",
                {},
                [],
                status="finished" if done else status,
                key=key(value).digest,
                folder=str(self.folder(value)) if done else None,
            )
        started = NOW - days_ago * DAY
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(started)) + f"{self.runs:03d}"
        record = RunRecord(
            f"{pipeline}-{stamp}-abcd", pipeline, "", "toy.yaml", str(self.home), status, started, stages
        )
        record.save()
        record.save_configs({})
        return record

    def left(self) -> set[str]:
        """Return the paths of the folders in the project folder."""
        parents = [self.home / "stages", self.home / "runs"]
        folders = (path for parent in parents if parent.exists() for path in parent.iterdir())
        return {path.relative_to(self.home).as_posix() for path in folders if path.name != ".locks"}


@pytest.fixture
def made(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def going(made: Store, policy: Policy = Policy(), **more: Any) -> dict[str, str]:  # noqa: B008 (frozen)
    """Return folder name → why it can go."""
    return {
        waste.path.name: waste.why for waste in find(made.home, policy, more.pop("aliased", {}), **more).waste
    }


def test_by_default_only_what_no_run_uses_goes(made):
    used, orphan = made.output(1), made.output(2)
    (used / "checkpoints" / "fit-1").mkdir(parents=True)  # killed right after its commit
    begun, lost = made.partial(3), made.partial(4)
    made.run(1)
    made.run(1, 3, status="failed")
    assert going(made) == {
        orphan.name: "no run uses it",
        lost.name: "no run uses it",
        "checkpoints": "half removed",
    }
    collect(made.home, Policy(), {})
    assert used.exists()
    assert begun.exists()
    assert not lost.exists()


def test_of_older_runs_go_their_records_and_what_no_newer_one_uses(made):
    for value in (1, 2, 3):
        made.output(value)
    old, new = made.run(1, 2, days_ago=2), made.run(2, 3)
    other = made.run(1, pipeline="other", days_ago=9)
    assert going(made, Policy(newest=1)) == {old.id: "not among those kept"}
    shutil.rmtree(other.folder)
    assert going(made, Policy(newest=1)) == {
        old.id: "not among those kept",
        made.folder(1).name: "only runs that go use it",
    }
    assert going(made, Policy(newest=2)) == {}
    collect(made.home, Policy(newest=1), {})
    assert made.left() == {f"runs/{new.id}", *(f"stages/{made.folder(value).name}" for value in (2, 3))}


def test_the_newest_whole_run_of_a_pipeline_stays_however_many_failed_after_it(made):
    made.output(1)
    whole = made.run(1, days_ago=30)
    for value in (2, 3):
        made.partial(value)
        made.run(value, status="failed", days_ago=20 - value)
    assert set(going(made, Policy(newest=1))) == {made.folder(2).name + ".partial"} | {
        run.name for run in (made.home / "runs").iterdir() if run.name != whole.id and "003" not in run.name
    }
    assert set(going(made, Policy(days=1))) == {
        run.name for run in (made.home / "runs").iterdir() if run.name != whole.id
    }, "the work folders were written today"


def test_younger_than_the_days_given_nothing_goes(made):
    made.output(1)
    made.run(2, days_ago=3)
    made.run(2)
    assert going(made, Policy(days=4)) == {}
    assert len(going(made, Policy(days=2))) == 1
    assert set(going(made, Policy(days=2), now=NOW + 10 * DAY)) >= {made.folder(1).name}


def test_a_run_that_lives_is_kept_with_all_that_it_names_or_will(made):
    made.output(1)
    made.partial(2)
    living = made.run(1, 2, status="running", days_ago=9)
    made.run(7)
    with living.alive():
        assert going(made, Policy(newest=1)) == {}
    assert set(going(made, Policy(newest=1))) == {
        living.id,
        made.folder(1).name,
        made.folder(2).name + ".partial",
    }


def test_what_has_an_alias_stays_with_the_run_that_made_it(made):
    champion = made.run(1, 2, days_ago=9)
    for value in (1, 2):
        made.output(value, run=champion.id)
    made.output(3)
    made.run(3)
    aliased = {made.folder(2) / "model.safetensors"}
    assert going(made, Policy(newest=1), aliased=aliased) == {}
    assert len(going(made, Policy(newest=1))) == 3


def test_a_run_that_the_tracking_server_was_not_told_of_yet_stays_whole(made):
    made.output(1)
    made.output(2)
    old, new = made.run(1, days_ago=9), made.run(2)
    spool = Spool(made.home, old.id)
    spool.begin()
    spool.append({"kind": "run"})
    assert going(made, Policy(newest=1)) == {}
    spool.save(Sent(ended=True))
    assert set(going(made, Policy(newest=1))) == {old.id, made.folder(1).name}
    assert find(made.home, Policy(newest=1), {}).kept_runs == 1, new.id


def test_an_output_that_a_configuration_names_stays(made):
    weights = made.output(1)
    run = made.run(2)
    run.save_configs({"make": {"all": {"weights": f"{weights}/model.pt"}, "set": {}}})
    assert going(made) == {}


def test_what_the_engine_did_not_name_is_left_alone(made):
    for name in ("stages/notes", "ray/my-sweep", "runs/readme", "stages/make-123.old-x"):
        (made.home / name).mkdir(parents=True)
    assert going(made) == {}


def test_a_locked_stage_stays(made):
    orphan = made.output(1)
    with made.store.lock(orphan, pytest.fail):
        removed = collect(made.home, Policy(), {})
    assert removed.waste == ()
    assert orphan.exists()
    assert [waste.path for waste in collect(made.home, Policy(), {}).waste] == [orphan]


def test_what_a_run_decides_to_reuse_while_it_starts_stays(made):
    orphan = made.output(1)
    deciding, decided = threading.Event(), threading.Event()

    def start() -> None:
        with made.store.deciding():
            deciding.set()
            assert decided.wait(60)
            made.run(1)

    run = threading.Thread(target=start)
    run.start()
    assert deciding.wait(60)
    assert set(going(made)) == {orphan.name}
    collection = threading.Thread(target=collect, args=(made.home, Policy(), {}))
    collection.start()
    decided.set()
    run.join()
    collection.join()
    assert orphan.exists()


def test_runs_go_on_deciding_while_a_store_is_measured(made, monkeypatch):
    reused, orphan = made.output(1), made.output(2)
    measure = gc._measure

    def a_run_starts(folder: Path) -> tuple[int, float]:
        with made.store.deciding():  # would wait for ever, were the collection's lock held
            if not made.runs:
                made.run(1)
        return measure(folder)

    monkeypatch.setattr(gc, "_measure", a_run_starts)
    removed = collect(made.home, Policy(), {})
    assert [waste.path for waste in removed.waste] == [orphan]
    assert reused.exists()


def test_an_interrupted_collection_leaves_nothing_half_and_the_next_one_ends_it(made, monkeypatch):
    for value in range(3):
        made.output(value)

    def interrupted(path: Path) -> None:
        next(path.iterdir()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(made.home, Policy(), {})
    assert not any(made.folder(value).exists() for value in range(3))
    assert set(going(made).values()) == {"half removed"}
    collect(made.home, Policy(), {})
    assert made.left() == set()


@pytest.mark.parametrize("text", [b"{", b"", b"[]", b"\xff"])
def test_a_damaged_record_ends_no_collection_and_keeps_what_may_be_its_own(made, text):
    damaged = made.run(1, 2, 3, status="failed")
    made.output(1, run=damaged.id)
    made.partial(3)
    named, orphan = made.output(4), made.output(5)
    damaged.save_configs({"make": {"all": {"weights": f"{named}/model.pt"}, "set": {}}})
    (damaged.folder / "run.json").write_bytes(text)
    other = made.run(6)
    findings = collect(made.home, Policy(newest=1), {})
    assert [waste.path for waste in findings.waste] == [orphan]
    (sentence,) = findings.corrupt
    assert sentence.startswith(f"{damaged.folder}/run.json: is not the record of a run")
    assert made.left() == {
        f"runs/{damaged.id}",
        f"runs/{other.id}",
        *(f"stages/{folder.name}" for folder in (made.folder(1), named)),
        f"stages/{made.folder(3).name}.partial",
    }


def test_an_empty_project_folder_has_nothing_to_collect(tmp_path):
    assert find(tmp_path, Policy(newest=1), {}) == gc.Findings((), 0, 0)


@pytest.mark.parametrize("seed", range(25))
def test_whatever_the_store_a_collection_takes_exactly_what_nothing_uses(made, seed):
    """A store made up by chance, checked against a few lines of set arithmetic."""
    chance = random.Random(seed)
    values = range(8)
    outputs = {value for value in values if chance.random() < 0.6}
    partials = {value for value in values if value not in outputs and chance.random() < 0.7}
    for value in outputs:
        made.output(value)
    for value in partials:
        made.partial(value)
    runs = [
        (
            made.run(
                *chance.sample(values, chance.randint(1, 4)),
                status=chance.choice(["finished", "failed", "stopped", "running"]),
                days_ago=20 - number,
                pipeline=chance.choice(["one", "two"]),
            ),
            chance.random() < 0.2,
        )
        for number in range(chance.randint(0, 9))
    ]
    newest = chance.choice([None, 1, 2, 3])
    with ExitStack() as lives:
        for run, alive in runs:
            if alive:
                lives.enter_context(run.alive())
        collect(made.home, Policy(newest), {})
        ids = set()
        for pipeline in ("one", "two"):
            mine = [(run, alive) for run, alive in reversed(runs) if run.pipeline == pipeline]
            ids |= {run.id for run, _ in mine[: newest or len(mine)]} | {
                run.id for run, alive in mine if alive
            }
            ids |= {run.id for run, _ in [pair for pair in mine if pair[0].status == "finished"][:1]}
        used = {int(name[5:-1]) for run, _ in runs if run.id in ids for name in run.stages}  # make[3] → 3
        left = made.left()
        assert {name for name in left if name.startswith("runs/")} == {f"runs/{name}" for name in ids}
        assert {name for name in left if name.startswith("stages/")} == {
            f"stages/{made.folder(value).name}" for value in outputs & used
        } | {f"stages/{made.folder(value).name}.partial" for value in partials & used}
        assert all(made.store.fault(made.folder(value)) is None for value in outputs & used)
        assert find(made.home, Policy(newest), {}).waste == ()


def test_what_the_trials_of_a_sweep_made_stays_with_the_sweep(made):
    trained, orphan = made.output(1), made.output(2)
    sweep = made.run(pipeline="ratio")
    trial = sweep.folder / "trials" / "t1"
    trial.mkdir(parents=True)
    (trial / "run.json").write_text(json.dumps({"stages": {"make": {"folder": str(trained)}}}))
    assert going(made) == {orphan.name: "no run uses it"}
