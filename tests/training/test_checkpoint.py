from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tats_core.errors import Stopped, StoreError
from tats_core.training import checkpoint
from tats_core.training.checkpoint import CheckpointConfig, CheckpointStore

EVERY = CheckpointConfig(epochs=1)


def _begun(folder: Path, config: CheckpointConfig = EVERY, **more: Any) -> CheckpointStore:
    store = CheckpointStore(folder, **more)
    store.begin(config)
    return store


def _steps(folder: Path) -> list[int]:
    return sorted(int(checkpoint.name.removeprefix("step-")) for checkpoint in folder.iterdir())


def test_a_fresh_store_has_no_state(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "new" / "folder").begin(EVERY) is None


def test_the_newest_state_comes_back_with_its_kinds_of_values(tmp_path: Path) -> None:
    store = _begun(tmp_path)
    store.save({"epoch": 1}, step=1, metrics={})
    state = {
        "epoch": 2,
        "weights": torch.arange(3.0),
        "rank": {"draws": torch.Generator().get_state()},
        "note": "x",
    }
    store.save(state, step=2, metrics={"loss": 1.0})
    restored = CheckpointStore(tmp_path).begin(EVERY)
    assert restored is not None
    assert (restored["epoch"], restored["note"]) == (2, "x")
    assert torch.equal(restored["weights"], state["weights"])  # type: ignore[arg-type]
    assert torch.equal(restored["rank"]["draws"], state["rank"]["draws"])  # type: ignore[index]


@pytest.mark.parametrize(
    ("best", "remaining"), [(None, [4, 5]), ("linear_top1", [2, 4, 5]), ("not_a_metric", [4, 5])]
)
def test_the_newest_and_the_best_stay(tmp_path: Path, best: str | None, remaining: list[int]) -> None:
    store = _begun(tmp_path, CheckpointConfig(keep=2, best=best))
    for step, top1 in enumerate((10.0, 40.0, 30.0, 20.0, 35.0), start=1):
        store.save({"step": step}, step=step, metrics={"linear_top1": top1})
    assert _steps(tmp_path) == remaining
    assert store.best() == (tmp_path / "step-000000002" if best == "linear_top1" else None)


def test_the_best_state_is_the_one_that_was_measured_not_a_later_one_that_still_carries_its_metric(
    tmp_path: Path,
) -> None:
    store = _begun(tmp_path, CheckpointConfig(keep=1, best="linear_top1"))
    # The health check after step 2 is the newest until the check after step 4.
    for step, top1 in enumerate((10.0, 40.0, 40.0, 20.0, 20.0), start=1):
        store.save({"step": step}, step=step, metrics={"linear_top1": top1})
    assert _steps(tmp_path) == [2, 5]


def test_a_kill_while_saving_leaves_the_state_before_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _begun(tmp_path, background=False)
    store.save({"epoch": 1}, step=1, metrics={})
    (tmp_path / "step-000000002-00c0ffee.tmp").mkdir()
    (tmp_path / "step-000000002-00c0ffee.tmp" / "state.pt").write_bytes(b"PK\x03\x04 half of a checkpoint")
    assert CheckpointStore(tmp_path).begin(EVERY) == {"epoch": 1}
    assert _steps(tmp_path) == [1]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda checkpoint: (checkpoint / "state.pt").unlink(), "state.pt is gone"),
        (lambda checkpoint: (checkpoint / "manifest.json").unlink(), "its manifest cannot be read"),
        (lambda checkpoint: (checkpoint / "manifest.json").write_text(""), "its manifest cannot be read"),
        (lambda checkpoint: (checkpoint / "manifest.json").write_text("[]"), "its manifest cannot be read"),
        (
            lambda checkpoint: (checkpoint / "manifest.json").write_text('{"files": 1}'),
            "its manifest cannot be",
        ),
        (lambda checkpoint: os.truncate(checkpoint / "state.pt", 10), "state.pt has another size"),
        (lambda checkpoint: (checkpoint / "manifest.json").write_text("{"), "its manifest cannot be read"),
    ],
)
def test_a_corrupt_checkpoint_gives_way_to_the_one_before_with_a_note(
    tmp_path: Path, harm: Any, reason: str
) -> None:
    store = _begun(tmp_path)
    for step in (1, 2):
        store.save({"step": step}, step=step, metrics={})
    harm(tmp_path / "step-000000002")
    messages: list[str] = []
    assert CheckpointStore(tmp_path, say=messages.append).begin(EVERY) == {"step": 1}
    (text,) = messages
    assert text.startswith(f"the checkpoint step-000000002 is corrupt ({reason}")
    assert text.endswith("going back to the one before")


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    store = _begun(tmp_path)
    for step in (1, 2):
        store.save({"weights": torch.zeros(1000) + step}, step=step, metrics={})
    path = tmp_path / "step-000000002" / "state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    state = CheckpointStore(tmp_path).begin(EVERY)
    assert state is not None
    assert state["weights"][0] == 1


def test_a_step_that_comes_again_replaces_its_state(tmp_path: Path) -> None:
    store = _begun(tmp_path)
    store.save({"attempt": 1}, step=7, metrics={})
    store.save({"attempt": 2}, step=7, metrics={})
    assert CheckpointStore(tmp_path).begin(EVERY) == {"attempt": 2}


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_a_sentence_and_leaves_the_state_before(
    tmp_path: Path, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _begun(tmp_path, background=background)
    store.save({"epoch": 1}, step=1, metrics={})

    def full(state: Any, file: Any) -> None:
        file.write(b"the beginning")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.wait()
    monkeypatch.setattr(torch, "save", full)

    def save() -> None:
        store.save({"epoch": 2}, step=2, metrics={})
        store.wait()

    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\); free space"):
        save()
    assert _steps(tmp_path) == [1], "what was written of it gave its space back"
    assert CheckpointStore(tmp_path).begin(EVERY) == {"epoch": 1}


def test_in_the_background_the_state_is_that_of_the_step_whatever_training_does_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, save = threading.Event(), torch.save

    def slow(state: Any, file: Any) -> None:
        go_on.wait(60)
        save(state, file)

    monkeypatch.setattr(torch, "save", slow)
    store = _begun(tmp_path, background=True)
    weights = torch.zeros(3)
    store.save({"weights": weights, "nested": [{"moment": weights}]}, step=1, metrics={})
    weights += 1
    assert _steps_whole(tmp_path) == []
    go_on.set()
    store.wait()
    state = CheckpointStore(tmp_path).begin(EVERY)
    assert state is not None
    assert state["weights"].tolist() == state["nested"][0]["moment"].tolist() == [0, 0, 0]


def _steps_whole(folder: Path) -> list[str]:
    return [checkpoint.name for checkpoint in folder.iterdir() if not checkpoint.suffix]


def test_a_wish_to_stop_is_answered_with_a_state_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_STOP_SECONDS", 0)
    asked = threading.Event()
    store = _begun(tmp_path, CheckpointConfig(epochs=None, minutes=None), stop=asked.is_set)
    assert not store.due(1)
    asked.set()
    assert store.due(2)
    with pytest.raises(Stopped):
        store.save({"step": 2}, step=2, metrics={})
    assert _steps(tmp_path) == [2]


def test_work_without_checkpoints_ends_at_its_next_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_STOP_SECONDS", 0)
    asked = threading.Event()
    store = _begun(tmp_path, stop=asked.is_set)
    assert list(store.until_stopped([1, 2])) == [1, 2]
    items = store.until_stopped([1, 2, 3])
    assert [next(items), next(items)] == [1, 2]
    asked.set()
    with pytest.raises(Stopped):
        next(items)


@pytest.mark.parametrize(
    ("config", "due"),
    [
        ({"epochs": 2}, {"epoch 2", "epoch 4"}),
        ({"epochs": None, "steps": 5}, {"step 5"}),
        ({"epochs": None}, set()),
    ],
)
def test_states_are_due_by_epochs_and_by_steps(tmp_path: Path, config: dict[str, Any], due: set[str]) -> None:
    store = _begun(tmp_path, CheckpointConfig(**config))
    by_step = {f"step {step}" for step in range(1, 7) if store.due(step)}
    # Ends of epochs of 7 steps.
    by_epoch = {f"epoch {epoch}" for epoch in range(1, 5) if store.due(7 * epoch, epochs=epoch)}
    assert by_step | by_epoch == due


def test_a_state_is_due_when_the_last_one_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    store = _begun(tmp_path, CheckpointConfig(epochs=None, minutes=10))
    now += 599
    assert not store.due(1)
    now += 2
    assert store.due(2)
    store.save({}, step=2, metrics={})
    assert not store.due(3)


def test_a_state_holds_no_code(tmp_path: Path) -> None:
    _begun(tmp_path).save({"folder": tmp_path}, step=1, metrics={})
    with pytest.raises(Exception, match="Weights only load failed"):
        CheckpointStore(tmp_path).begin(EVERY)


def test_the_manifest_names_step_workers_and_metrics(tmp_path: Path) -> None:
    _begun(tmp_path).save({"rank": {"a": 1}}, step=3, metrics={"loss": 0.5})
    manifest = json.loads((tmp_path / "step-000000003" / "manifest.json").read_text())
    assert (manifest["step"], manifest["workers"], manifest["figures"]) == (3, 1, {"loss": 0.5})
    assert sorted(manifest["files"]) == ["rank-0.pt", "state.pt"]
