"""Files that appear whole, and what they hold."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tats_core import files


def test_what_cannot_be_written_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_name_that_is_no_utf_8_comes_back_as_it_was(tmp_path: Path) -> None:
    name = os.fsdecode(b"clip-\xff-\xc3\xa9.mp4")
    files.write_json(tmp_path / "names.json", [name])
    assert json.loads((tmp_path / "names.json").read_text(encoding="utf-8")) == [name]


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"tokens")
    assert files.digest(tmp_path / "file") == hashlib.sha256(b"tokens").hexdigest()
