"""Faults, each really injected into a `tats run` of its own processes.

After each the next run finishes, with the parameters of a run that was never disturbed, bit for bit, and
with all points of its curves in MLflow, none twice.

`make test-faults` harms a project folder of its own with each, and one folder with one of each kind, one
after the other.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tats_core.store.run import RunRecord

from .harness import STEP, Lab, same, until

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1200)]

MOUNTS = os.geteuid() == 0
RESUME = "resume with: tats run pipeline"
SAYS_DAMAGED = re.compile(r"the checkpoint step-\d+ is corrupt \(state.pt has another content\)")
COMMIT = "tats_core.store.outputs:write_json"
BAD_INPUT, FAILED, STOPPED = 2, 1, 130


def one_sentence(said: str) -> str:
    """Return what the command line says of an error: one line, and no traceback."""
    (line,) = [line for line in said.splitlines() if line.startswith("tats: ")]
    assert "Traceback" not in said
    return line


def resumed(said: str) -> tuple[int, int]:
    """Return after which steps of its pre-training a run began, and began again."""
    steps = [int(step) for step in re.findall(r"resumed after step (\d+) of 36", said)]
    return (0, *steps)[-2], steps[-1]


def a_worker_is_killed(lab: Lab) -> None:
    code, said = lab.run(faults=[lab.fault(STEP, "kill", 5, rank=1)])
    assert code == 0, said
    before, after = resumed(said)
    assert 0 < after - before < 5, "back to the checkpoint of the last epoch"


def the_driver_is_killed(lab: Lab) -> None:
    with lab.held(STEP, 5, rank=0) as run:
        os.kill(run.process.pid, signal.SIGKILL)
        # Nobody lets the worker go on: it has to notice by itself that it is alone.
        code, _ = run.wait()
    assert code == -signal.SIGKILL
    assert RunRecord.load(lab.home / "runs" / lab.record()["id"]).state == "lost"


def a_workers_machine_is_taken_away(lab: Lab) -> None:
    with lab.held(STEP, 5, rank=1) as run:
        (worker,) = [pid for pid in run.of("ray::RayTrainWorker") if _holds(lab, pid, rank=1)]
        os.kill(worker, signal.SIGTERM)
    code, said = run.wait()
    assert code == 0, said
    before, after = resumed(said)
    # Python handles signals between two steps at the earliest, on a busy machine several later.
    assert after - before >= 5, "no step is lost"


def _holds(lab: Lab, pid: int, rank: int) -> bool:
    log = lab.partial("pretrain") / "log" / f"worker-{rank}.log"
    return Path(f"/proc/{pid}/fd/1").resolve() == log.resolve()


def the_machine_is_taken_away_before_a_checkpoint(lab: Lab) -> None:
    with lab.held(STEP, 4, "--grace", "1", rank=0) as run:
        os.kill(run.process.pid, signal.SIGTERM)
        # The worker stands still: a second later, nothing waits for it.
        code, said = run.wait()
    assert code == STOPPED, said
    assert "Stopped at once" in said
    assert lab.record()["status"] == "stopped"


def the_head_is_killed(lab: Lab) -> None:
    with lab.held(STEP, 5, rank=0) as run:
        (head,) = run.of("gcs_server")
        os.kill(head, signal.SIGKILL)
    code, said = run.wait()
    assert code == 0, said
    # The workers may go on for a moment before they know.
    assert "resumed after step" in said


def the_raylet_is_killed(lab: Lab) -> None:
    with lab.held(STEP, 5, rank=0) as run:
        (raylet,) = run.of("raylet/raylet")
        os.kill(raylet, signal.SIGKILL)
    code, said = run.wait()
    assert code == 0, said
    # The workers may go on for a moment before they know.
    assert "resumed after step" in said


def it_is_asked_to_end(lab: Lab) -> None:
    with lab.held(STEP, 4, rank=0) as run:
        os.kill(run.process.pid, signal.SIGTERM)
        until(lambda: "stopping" in run.said)
        until(lambda: (lab.partial("pretrain") / "log" / "please-stop").exists())
        time.sleep(0.6)  # the workers look twice a second
    code, said = run.wait()
    assert code == STOPPED, said
    assert "SIGTERM received" not in said, "Ray's own handler prints a stack"
    assert RESUME.capitalize() in said


def ctrl_c_is_pressed(lab: Lab) -> None:
    with lab.held(STEP, 4, rank=0) as run:
        run.interrupt()
        until(lambda: "stopping" in run.said)
        until(lambda: (lab.partial("pretrain") / "log" / "please-stop").exists())
        time.sleep(0.6)
    code, said = run.wait()
    assert code == STOPPED, said
    assert "Traceback" not in said
    assert RESUME.capitalize() in said


def ctrl_c_is_pressed_twice(lab: Lab) -> None:
    with lab.held(STEP, 4, rank=0) as run:
        run.interrupt()
        until(lambda: "stopping" in run.said)
        run.interrupt()
        # The worker stands still: nothing waits for it.
        code, said = run.wait()
    assert code == STOPPED, said
    assert "Traceback" not in said


def a_stage_raises(lab: Lab) -> None:
    # Ray tries once more what may be no more than a lost peer: both attempts have to raise.
    twice = [lab.fault(STEP, "raise", call, rank=0) for call in (4, 5)]
    code, said = lab.run(faults=twice)
    assert code == FAILED, said
    assert "injected" in one_sentence(said)
    assert RESUME in one_sentence(said)


def a_storm_of_nans(lab: Lab) -> None:
    code, said = lab.run(faults=[lab.fault(STEP, "nan", 5)])
    assert code == FAILED, said
    assert "20 steps in a row had a non-finite gradient" in one_sentence(said)
    assert f"`tats replay {lab.partial('pretrain')}/dump`" in one_sentence(said)


def the_driver_is_killed_and_its_newest_checkpoint_corrupt(lab: Lab) -> None:
    with lab.held(STEP, 8, rank=0) as run:
        os.kill(run.process.pid, signal.SIGKILL)
        run.wait()
    state = max(lab.partial("pretrain").glob("checkpoints/*/step-*")) / "state.pt"
    whole = state.read_bytes()
    state.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])


def the_newest_checkpoint_is_corrupt(lab: Lab) -> None:
    the_driver_is_killed_and_its_newest_checkpoint_corrupt(lab)
    with lab.held(STEP, 1, rank=0) as run:
        until(lambda: SAYS_DAMAGED.search(run.said))
        os.kill(run.process.pid, signal.SIGKILL)
        run.wait()


def a_commit_is_interrupted(lab: Lab) -> None:
    kill = lab.fault(COMMIT, "kill", match=r"pretrain-.*manifest\.json", after=True)
    code, _ = lab.run(faults=[kill])
    assert code == -signal.SIGKILL
    assert (lab.partial("pretrain") / "manifest.json").exists()


def the_disk_is_full(lab: Lab) -> None:
    with small_disk(lab) as disk:
        with lab.held(STEP, 5, rank=0) as run:
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
        code, said = run.wait()
        filler.unlink()
    assert code in (FAILED, BAD_INPUT), said
    assert "No space left on device" in one_sentence(said)


def the_store_is_read_only(lab: Lab) -> None:
    with read_only(lab.home):
        code, said = lab.run()
    assert code == BAD_INPUT, said
    assert re.search(r"home.*: .*Read-only file system.*TATS_HOME", one_sentence(said))


def the_clock_jumps(lab: Lab) -> None:
    day = 86400
    back = lab.fault("tats_core.tracking:Tracker.events", "jump", 2, seconds=-day)
    ahead = lab.fault(STEP, "jump", 5, rank=0, seconds=-2 * day)
    code, said = lab.run(faults=[back, ahead])
    assert code == 0, said
    assert "-" not in re.findall(r"small finished after ([^:]+):", said)[0]


def two_run_at_once(lab: Lab) -> None:
    with lab.held(STEP, 5, rank=0) as first:
        second = lab.start()
        until(lambda: "waits for process" in second.said or second.process.poll() is not None)
        assert f"waits for process {first.process.pid}" in second.said, second.said
    code, said = first.wait()
    assert code == 0, said
    code, said = second.wait()
    assert code == 0, said
    assert "pretrain: reused" in said


@contextmanager
def small_disk(lab: Lab) -> Iterator[Path]:
    """Put the stages of the project folder on a disk of their own."""
    disk = lab.home / "stages"
    aside = lab.folder / "aside"
    disk.rename(aside)
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], check=True)
    subprocess.run(["cp", "-a", f"{aside}/.", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["rm", "-rf", str(aside)], check=True)
        subprocess.run(["cp", "-a", str(disk), str(aside)], check=True)
        subprocess.run(["umount", "-l", str(disk)], check=True)
        disk.rmdir()
        aside.rename(disk)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mount `folder` over itself, read-only: the permissions of files do not stop root."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


Fault = Callable[[Lab], None]

# These end with a part of the work done; the others go through, in one run.
CUT_OFF: list[Fault] = [
    the_store_is_read_only,
    the_driver_is_killed,
    ctrl_c_is_pressed,
    a_stage_raises,
    it_is_asked_to_end,
    the_machine_is_taken_away_before_a_checkpoint,
    the_disk_is_full,
    the_newest_checkpoint_is_corrupt,
    ctrl_c_is_pressed_twice,
    a_storm_of_nans,
    a_commit_is_interrupted,
]
GONE_THROUGH: list[Fault] = [
    a_worker_is_killed,
    a_workers_machine_is_taken_away,
    the_head_is_killed,
    the_raylet_is_killed,
    the_clock_jumps,
    two_run_at_once,
]

NEED_MOUNTS = (the_store_is_read_only, the_disk_is_full)

# One of each kind, for a folder that has to survive them all.
IN_TURN: list[Fault] = [
    the_store_is_read_only,
    the_driver_is_killed_and_its_newest_checkpoint_corrupt,
    ctrl_c_is_pressed,
    a_stage_raises,
    the_disk_is_full,
    a_commit_is_interrupted,
]


def _skip_what_needs_root(fault: Fault) -> None:
    if fault in NEED_MOUNTS and not MOUNTS:
        pytest.skip("mounts a file system, which only root may do")


@pytest.mark.parametrize("fault", [*CUT_OFF, *GONE_THROUGH], ids=lambda fault: fault.__name__)
def test_the_run_after_it_ends_as_one_that_was_never_disturbed(fault, lab, reference):
    _skip_what_needs_root(fault)
    fault(lab)
    code, said = lab.run()
    assert code == 0, said
    # A storm leaves points of its own before the run goes back to where it began.
    same(lab, reference, values=fault is not a_storm_of_nans)


def test_a_fork_with_the_same_settings_ends_in_the_bits_of_the_training_that_it_left(lab, reference):
    the_driver_is_killed(lab)
    parent = lab.record()["id"]
    code, said = lab.run("--fork", f"{parent}:pretrain@2")
    assert code == BAD_INPUT, said
    assert one_sentence(said).endswith("pretrain has no checkpoint of step 2; it has those of step 3")
    code, said = lab.run("--fork", f"{parent}:pretrain@3")
    assert code == 0, said
    assert "resumed after step 3 of 36" in said
    assert Path(lab.stage("pretrain")).name != Path(reference.stage("pretrain")).name
    found, wanted = lab.parameters(), reference.parameters()
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []


def test_a_folder_harmed_by_one_of_each_kind_in_turn_ends_as_one_never_disturbed(lab, reference, subtests):
    for fault in IN_TURN:
        with subtests.test(fault.__name__):
            _skip_what_needs_root(fault)
            fault(lab)
    assert any(SAYS_DAMAGED.search(run.said) for run in lab.started)
    code, said = lab.run()
    assert code == 0, said
    same(lab, reference)
