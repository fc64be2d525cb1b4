"""The wheel, installed elsewhere; the pins; the files of the house."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tats_core import __version__
from tests.forks import Forks

CHECKOUT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
SHIPPED = sorted(path.stem for path in (CHECKOUT / "pipelines").glob("*.yaml"))
SWEEPS = sorted(path.stem for path in (CHECKOUT / "sweeps").glob("*.yaml"))


def pins() -> dict[str, Version]:
    """Return package → version of the lock."""
    lines = (CHECKOUT / "requirements.lock").read_text().splitlines()
    split = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in split}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with the tools that are installed, without a network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(CHECKOUT),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, without its dependencies, into a folder of its own."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True, capture_output=True)
    return target


Python = Callable[..., str]


@pytest.fixture(scope="module")
def python(installed: Path, forks: Forks) -> Python:
    """Return a function that runs Python in the installation's folder, where no checkout is in sight."""

    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        code, out, err = forks.run(*words, cwd=installed, env=environment, log=installed.with_suffix(".log"))
        assert code == 0, err
        return out

    return run


@pytest.mark.slow
def test_the_wheel_carries_the_pipelines_the_templates_the_licence_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in SHIPPED:
        assert f"tats_core/_specs/pipelines/{name}.yaml" in names
    templates = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "tats_core").rglob("*.j2")}
    assert templates
    assert templates <= set(names)
    assert f"tats_core-{__version__}.dist-info/licenses/LICENSE" in names
    assert {name.split("/")[0] for name in names} == {"tats_core", f"tats_core-{__version__}.dist-info"}


@pytest.mark.slow
def test_installed_elsewhere_it_lists_the_pipelines(installed: Path, python: Python) -> None:
    where = "import tats_core, pathlib; print(pathlib.Path(tats_core.__file__).parent.parent)"
    assert python("-c", where).strip() == str(installed)
    listed = python("-m", "tats_core", "list").splitlines()
    blank = listed.index("")
    assert sorted(line.split()[0] for line in listed[:blank]) == SHIPPED
    assert sorted(line.split()[0] for line in listed[blank + 2 :]) == SWEEPS


@pytest.mark.slow
def test_installed_elsewhere_it_plans_every_pipeline(installed: Path, python: Python) -> None:
    done = python("-c", planning(SHIPPED, "run", "pipeline"))
    first = [line.split(":")[0] for line in done.splitlines() if line.endswith(", 0 reused")]
    assert first == SHIPPED
    assert done.count(", 0 reused\n") == len(SHIPPED)
    assert not (installed / ".tats").exists()


@pytest.mark.slow
def test_installed_elsewhere_it_plans_every_sweep(installed: Path, python: Python) -> None:
    done = python("-c", planning(SWEEPS, "sweep"))
    first = [line.split(":")[0] for line in done.splitlines() if not line.startswith(" ")]
    assert first == SWEEPS
    assert not (installed / ".tats").exists()


def planning(names: list[str], *command: str) -> str:
    """Return a program that plans all `names`: one process for all, since each would import torch again."""
    return (
        "import sys\nfrom tats_core.cli.app import main\n"
        f"for name in {names}:\n"
        f"    sys.argv = ['tats', *{command}, name, '--plan']\n"
        "    try: main()\n    except SystemExit as ended: assert not ended.code\n"
    )


def requirements() -> list[tuple[str, Requirement]]:
    """What is asked for anywhere, apart from the package's own extras."""
    texts = [
        *PROJECT["dependencies"],
        *(text for extra in PROJECT["optional-dependencies"].values() for text in extra),
    ]
    return [(text, Requirement(text)) for text in texts if Requirement(text).name != PROJECT["name"]]


def test_the_lock_has_a_pin_that_satisfies_every_requirement() -> None:
    pinned = pins()
    for text, requirement in requirements():
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text


def test_every_lower_bound_is_of_the_minor_release_that_was_tested() -> None:
    pinned = pins()
    for text, requirement in requirements():
        (bound,) = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
        assert bound.release[:2] == pinned[canonicalize_name(requirement.name)].release[:2], text


def test_the_lock_names_no_file_no_address_and_nothing_twice() -> None:
    lines = (CHECKOUT / "requirements.lock").read_text().splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in entries)
    assert len(entries) == len(pins())


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [
        ("linux", "x86_64", True),
        ("linux", "aarch64", False),
        ("darwin", "arm64", False),
        ("win32", "AMD64", True),
    ],
)
def test_decord_is_asked_for_only_where_it_has_a_wheel(system: str, machine: str, wanted: bool) -> None:
    (text,) = [text for text in PROJECT["dependencies"] if text.startswith("decord")]
    marker = Requirement(text).marker
    assert isinstance(marker, Marker)
    assert marker.evaluate({"sys_platform": system, "platform_machine": machine}) is wanted


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        (None, "make: there is no '{python}' here; install Python 3.11 or newer"),
        (
            "echo 'Python 3.8.10'; exit 1",
            "make: Python 3.11 or newer is needed and '{python}' is Python 3.8.10",
        ),
        (
            'case "$2" in *ensurepip*) exit 1;; esac',
            "make: '{python}' cannot make virtual environments; on Debian",
        ),
    ],
)
def test_a_missing_system_piece_gets_one_sentence_from_make(
    tmp_path: Path, fake: str | None, said: str
) -> None:
    python = tmp_path / "python"
    if fake is not None:
        python.write_text(f"#!/bin/sh\n{fake}\n")
        python.chmod(0o755)
    # `make test` runs this test: what it tells the makes below it is not for this one.
    settings = {name: value for name, value in os.environ.items() if "MAKE" not in name and name != "MFLAGS"}
    done = subprocess.run(
        ["make", "--no-print-directory", "demo", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"],
        cwd=CHECKOUT, env=settings, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith(said.format(python=python))
    assert all(line.startswith("make: *** ") for line in rest)
    assert not (tmp_path / "venv").exists()
