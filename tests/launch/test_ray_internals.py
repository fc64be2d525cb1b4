from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path

import tats_core
from tats_core.launch.ray_internals import NAMES

PRIVATE = re.compile(
    r"ray\._private\.worker|ray_constants|ray\._raylet|ray\.train\.v2\._internal|_and_run_controller"
)


def lacking(names: Mapping[str, str]) -> str:
    """Return a sentence with the names that do not exist, and what is lost without each."""
    return "; ".join(f"without {name}: {loss}" for name, loss in names.items() if not exists(name))


def exists(name: str) -> bool:
    module, _, attributes = name.partition(":")
    try:
        value: object = importlib.import_module(module)
        for attribute in attributes.split("."):
            value = getattr(value, attribute)
    except (ImportError, AttributeError):
        return False
    return True


def test_the_installed_ray_has_every_private_name_that_is_used():
    assert lacking(NAMES) == ""


def test_a_missing_name_is_reported_with_what_is_lost():
    names = {"ray.no_such_module:x": "a", "ray:no_such_name": "b", "ray:init": "c"}
    assert lacking(names) == "without ray.no_such_module:x: a; without ray:no_such_name: b"


def test_private_names_of_ray_stand_in_one_file():
    package = Path(tats_core.__file__).parent
    files = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if PRIVATE.search(path.read_text())
    }
    assert files == {"launch/ray_internals.py"}
