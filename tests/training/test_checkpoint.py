from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tats_core.training.checkpoint import FolderStore


def test_a_fresh_store_has_no_state(tmp_path: Path) -> None:
    assert FolderStore(tmp_path / "new" / "folder").latest() is None


def test_the_newest_state_is_kept_with_its_kinds_of_values(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.save({"epoch": 1}, step=1, metrics={})
    state = {
        "epoch": 2,
        "weights": torch.arange(3.0),
        "rank": {"draws": torch.Generator().get_state()},
        "note": "x",
    }
    store.save(state, step=2, metrics={"loss": 1.0})
    found = FolderStore(tmp_path).latest()
    assert found is not None
    assert (found["epoch"], found["note"]) == (2, "x")
    assert torch.equal(found["weights"], state["weights"])  # type: ignore[arg-type]
    assert torch.equal(found["rank"]["draws"], state["rank"]["draws"])  # type: ignore[index]


def test_a_kill_while_saving_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    store.save({"epoch": 1}, step=1, metrics={})

    def half(state: Any, file: Any) -> None:
        file.write(b"PK\x03\x04 half of a checkpoint")
        file.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            store.save({"epoch": 2}, step=2, metrics={})
    assert store.latest() == {"epoch": 1}
    store.save({"epoch": 3}, step=3, metrics={})
    assert store.latest() == {"epoch": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_state_holds_no_code(tmp_path: Path) -> None:
    FolderStore(tmp_path).save({"folder": tmp_path}, step=1, metrics={})
    with pytest.raises(Exception, match="Weights only load failed"):
        FolderStore(tmp_path).latest()
