"""Files that appear complete or not at all, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
from pathlib import Path

import pytest

from tats_core import files
from tats_core.errors import StoreError


def test_what_cannot_be_written_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    files.write_bytes(path, b"old")

    def interrupted() -> None:
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_content_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    files.write_text(path, "old\r\n")
    with files.replacing(path) as temporary:
        assert temporary.suffix == ".tmp"
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old\r\n"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    with files.replacing(path) as first, files.replacing(path) as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first"  # the outer one is renamed last


def test_a_name_that_is_no_utf_8_comes_back_as_it_was(tmp_path: Path) -> None:
    name = os.fsdecode(b"clip-\xff-\xc3\xa9.mp4")
    files.write_json(tmp_path / "names.json", [name])
    assert json.loads((tmp_path / "names.json").read_text(encoding="utf-8")) == [name]


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"tokens")
    assert files.digest(tmp_path / "file") == hashlib.sha256(b"tokens").hexdigest()


def test_a_line_that_the_disk_does_not_take_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    files.append_line(path, {"number": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            files.append_line(path, {"number": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    files.append_line(path, {"number": 3})
    assert path.read_text() == '{"number": 1}\n{"number": 3}\n'


def test_a_line_after_half_a_line_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"number": 1}\n{"num')
    files.append_line(path, {"number": 2})
    assert path.read_text() == '{"number": 1}\n{"num\n{"number": 2}\n'


def test_json_that_is_nested_too_deeply_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(StoreError, match=r"a\.json: is not a list \(it is nested too deeply\)"):
        files.read_json(tmp_path / "a.json", list[int], "a list")
