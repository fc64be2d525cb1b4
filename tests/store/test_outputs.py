from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import IO, Any

import pytest

from tats_core import files
from tats_core.errors import StoreError
from tats_core.files import digest
from tats_core.pipeline import graph as graphs
from tats_core.pipeline.keys import stage_key
from tats_core.store.outputs import StageKey, StageStore, make_folder
from tats_core.store.run import RunRecord

KEY = StageKey({"kind": "make/1", "config": {"value": 1}, "code": {}, "inputs": [], "external": {}})
ORIGIN = {"pipeline": "toy", "stage": "make", "run": "r"}


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path)


def committed(store: StageStore, key: StageKey = KEY, **texts: str) -> Path:
    folder = store.folder("make", key)
    partial = store.begin(folder, fresh=False)
    for name, text in (texts or {"value": "1"}).items():
        (partial / f"{name}.txt").write_text(text)
    store.commit(partial, folder, key, ORIGIN, {})
    return folder


def test_a_commit_leaves_the_output_and_nothing_of_the_attempt(store):
    folder = committed(store)
    assert sorted(path.name for path in folder.iterdir()) == ["key.json", "manifest.json", "value.txt"]
    assert not store.partial(folder).exists()
    assert store.fault(folder, KEY) is None
    assert store.origin(folder).components == KEY.components


def test_an_output_that_is_not_there_has_an_empty_fault(store):
    assert store.fault(store.folder("make", KEY), KEY) == ""


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda folder: (folder / "value.txt").unlink(), "value.txt is gone"),
        (lambda folder: (folder / "value.txt").write_text("12"), "value.txt has another size"),
        (lambda folder: (folder / "value.txt").write_text("2"), "value.txt has another content"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "its manifest cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "its manifest cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text(""), "its manifest cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "its manifest cannot be read"),
        (lambda folder: edit(folder / "manifest.json", digest="0" * 64), "its manifest was changed"),
        (lambda folder: edit(folder / "key.json", components=[]), "its manifest cannot be read"),
        (lambda folder: edit(folder / "key.json", components={"inputs": 1}), "its manifest cannot be read"),
        (lambda folder: (folder / "key.json").write_text("null"), "its manifest cannot be read"),
    ],
)
def test_a_damaged_output_does_not_count(store, harm, fault):
    folder = committed(store)
    harm(folder)
    assert store.fault(folder, KEY).startswith(fault)


def test_a_file_is_read_again_only_if_it_has_changed(store, monkeypatch):
    committed(store)
    store, read = StageStore(store.root.parent), []
    folder = store.folder("make", KEY)
    monkeypatch.setattr(files, "digest", lambda path: read.append(path.name) or digest(path))
    assert store.fault(folder, KEY) is None
    assert store.fault(folder, KEY) is None
    assert read == ["value.txt"]
    (folder / "value.txt").write_text("2")
    os.utime(folder / "value.txt", (1, 1))  # whatever the clock's grain
    assert store.fault(folder, KEY) == "value.txt has another content"


def test_an_output_under_another_key_with_the_same_first_digits_does_not_count(store):
    folder = committed(store)
    other = StageKey({**KEY.components, "config": {"value": 2}})
    assert store.fault(folder, other) == "it was made under another key"


def test_a_file_larger_than_a_mebibyte_is_checked_by_its_size_only(store):
    folder = committed(store, large="x" * (1 << 21))
    (folder / "large.txt").write_text("y" * (1 << 21))
    assert store.fault(folder, KEY) is None
    (folder / "large.txt").write_text("y")
    assert store.fault(folder, KEY) == "large.txt has another size"


def test_a_flipped_byte_in_a_large_file_is_noticed_in_full_and_the_output_does_not_count_again(store):
    folder = committed(store, large="x" * (1 << 21))
    store.verify(folder)
    (folder / "large.txt").write_text("x" * ((1 << 21) - 1) + "y")
    with pytest.raises(StoreError, match=r"make-.*: large.txt has another content; run again"):
        store.verify(folder)
    assert store.fault(folder, KEY) is not None


@pytest.mark.parametrize("text", ["", "[]", '{"forced": []}'])
def test_an_attempt_with_a_corrupt_mark_is_not_resumed(store, text):
    folder = store.folder("make", KEY)
    (store.begin(folder, fresh=False) / "attempt.json").write_text(text)
    assert store.unfinished(folder) == "corrupt"


def test_the_output_digest_leaves_out_events_and_logs(store, tmp_path):
    first = committed(store)
    digest = store.manifest(first).digest
    other = StageStore(tmp_path / "other")
    partial = other.begin(other.folder("make", KEY), fresh=False)
    (partial / "value.txt").write_text("1")
    (partial / "events.jsonl").write_text("{}\n")
    (partial / "log").mkdir()
    (partial / "log" / "worker-0.log").write_text("hello")
    other.commit(partial, other.folder("make", KEY), KEY, ORIGIN, {})
    assert other.manifest(other.folder("make", KEY)).digest == digest


def test_an_identity_stands_for_the_bytes_of_a_file(store, tmp_path):
    digests = []
    for name in ("first", "second"):
        copy = StageStore(tmp_path / name)
        partial = copy.begin(copy.folder("make", KEY), fresh=False)
        (partial / "list.json").write_text(f"/data/{name}")
        copy.commit(partial, copy.folder("make", KEY), KEY, ORIGIN, {"list.json": "the same videos"})
        digests.append(copy.manifest(copy.folder("make", KEY)).digest)
    assert digests[0] == digests[1]


def test_states_to_go_on_from_are_no_output_and_go_after_the_commit(store, tmp_path):
    digest = store.manifest(committed(store)).digest
    other = StageStore(tmp_path / "other")
    folder = other.folder("make", KEY)
    partial = other.begin(folder, fresh=False)
    (partial / "value.txt").write_text("1")
    for scratch in ("checkpoints/fit-1/step-000000001/state.pt", "ray/a/b"):
        (partial / scratch).parent.mkdir(parents=True)
        (partial / scratch).touch()
    other.commit(partial, folder, KEY, ORIGIN, {})
    assert sorted(path.name for path in folder.iterdir()) == ["key.json", "manifest.json", "value.txt"]
    assert other.manifest(folder).digest == digest
    assert other.fault(folder, KEY) is None


def test_an_attempt_goes_on_in_its_folder(store):
    folder = store.folder("make", KEY)
    partial = store.begin(folder, fresh=False)
    (partial / "half").touch()
    assert store.begin(folder, fresh=False) == partial
    assert (partial / "half").exists()
    assert store.unfinished(folder) == "begun"


def test_a_fresh_attempt_starts_empty(store):
    folder = store.folder("make", KEY)
    partial = store.begin(folder, fresh=False)
    (partial / "half").touch()
    assert store.begin(folder, fresh=True) == partial
    assert not (partial / "half").exists()
    assert store.unfinished(folder) == "forced"


def test_a_kill_in_the_middle_of_a_commit_leaves_a_forced_attempt_forced(store, monkeypatch):
    folder = committed(store, old="1")
    partial = store.begin(folder, fresh=True)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StageStore, "_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        store.commit(partial, folder, KEY, ORIGIN, {})
    assert store.unfinished(folder) == "forced"


def test_a_commit_replaces_an_earlier_output_whole(store):
    committed(store, old="1")
    folder = committed(store, new="2")
    assert not (folder / "old.txt").exists()
    assert store.fault(folder, KEY) is None
    assert [path.name for path in store.root.iterdir()] == [folder.name]


def test_only_one_process_at_a_time_makes_an_output(store, tmp_path):
    folder = store.folder("make", KEY)
    make_folder(store.root)
    script = f"""
        import sys
        from pathlib import Path
        from tats_core.store.outputs import StageStore
        store = StageStore(Path({str(tmp_path)!r}))
        with store.lock(Path({str(folder)!r}), lambda process: None):
            print("locked", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        holders: list[str] = []

        def wait(process: str) -> None:
            holders.append(process)
            other.kill()  # a lock ends with the process that held it

        with store.lock(folder, wait):
            assert holders[0] == str(other.pid)
    with (store.root / ".locks" / folder.name).open() as file:
        assert file.read() == str(os.getpid())
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_every_lock_can_be_taken_over_nfs_too(store, monkeypatch):
    def as_over_nfs(file: IO[str], mode: int) -> None:
        can = file.readable() if mode & fcntl.LOCK_SH else file.writable()
        if not can:
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", as_over_nfs)
    with store.deciding(), store.collecting(), store.lock(store.folder("make", KEY), lambda process: None):
        pass
    record = RunRecord("toy-1", "toy", "", "toy.yaml", str(store.root), "running", 0.0, {})
    with record.alive():
        assert not record.is_alive(), "nobody holds a lock here"


def test_a_read_only_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/stages: cannot be created .*; set TATS_HOME"):
        make_folder(tmp_path / "file" / "stages")


def test_a_key_depends_on_configuration_and_inputs_but_not_on_names(load):
    def key(text: str, *digests: str, pipeline: str = "toy") -> str:
        graph = graphs.build(load(text))
        last = list(graph.instances.values())[-1]
        inputs = [(graph.instances[need], digest) for need, digest in zip(last.needs, digests, strict=True)]
        return stage_key(last, inputs, pipeline).digest

    base = key("stages: {m: {kind: make}, g: {kind: grow, needs: m}}", "d1")
    assert key("stages: {other: {kind: make}, name: {kind: grow, needs: other}}", "d1") == base
    assert key("stages: {m: {kind: make}, g: {kind: grow, needs: m}}", "d1", pipeline="b") == base
    assert key("stages: {m: {kind: make}, g: {kind: grow, needs: m}}", "d2") != base
    assert key("stages: {m: {kind: make}, g: {kind: grow, needs: m, add: 2}}", "d1") != base
    assert key("stages: {m: {kind: make}, g: {kind: grow, needs: m, cpus: 2}}", "d1") == base
    assert key("stages: {m: {kind: make, decode_workers: 9}}") == key("stages: {m: {kind: make}}")


def test_a_key_file_holds_every_component(store):
    stored = json.loads((committed(store) / "key.json").read_text())
    assert set(stored["components"]) == {"kind", "config", "code", "inputs", "external"}
    assert (stored["pipeline"], stored["stage"], stored["run"]) == ("toy", "make", "r")


def test_the_history_holds_the_newest_output_of_each_stage_and_no_other(store, monkeypatch):
    other = StageKey({**KEY.components, "config": {"value": 2}})
    for when, key in ((20.0, other), (10.0, KEY)):
        monkeypatch.setattr("time.time", lambda when=when: when)
        committed(store, key)
    third = store.folder("make", StageKey({**KEY.components, "config": {"value": 3}}))
    store.begin(third, fresh=False)
    assert store.history("make") == {("toy", "make"): other.components}
    assert store.history("ma") == {}


def test_an_output_whose_key_cannot_be_read_is_left_out_of_the_history(store):
    (committed(store) / "key.json").write_text("{")
    assert store.history("make") == {}
