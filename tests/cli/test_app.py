"""The command as a whole: speed, errors, suggestions."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from tats_core import __version__
from tats_core.cli import app
from tests.cli.conftest import Ended

HEAVY = (
    "torch", "ray", "mlflow", "numpy", "matplotlib", "pandas", "timm", "av", "pydantic", "yaml", "rich"
)  # fmt: skip


def test_help_imports_no_package_that_would_make_it_wait():
    code = (
        "import sys\nfrom tats_core.cli.app import main\nsys.argv = ['tats', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_plan_imports_nothing_that_only_training_or_a_page_needs(tmp_path):
    code = (
        "import sys\nfrom tats_core.cli.app import main\n"
        "sys.argv = ['tats', 'run', 'pipeline', 'demo', '--plan']\n"
        "try: main()\nexcept SystemExit as ended: assert ended.code == 0\n"
        "names = ('timm', 'torchvision', 'pandas', 'matplotlib', 'scipy', 'ray', 'mlflow')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "tats_core", "--version"]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"tats {__version__}\n"
    )


def test_help_names_every_command_with_a_sentence(tats):
    listed = tats("--help").out.split("Commands:")[1]
    lines = [line.split(maxsplit=1) for line in listed.splitlines() if line.strip()]
    assert [line[0] for line in lines] == list(dict.fromkeys(words.split()[0] for words in app.COMMANDS))
    assert all(len(line) == 2 for line in lines)


def test_the_command_of_a_package_that_is_broken_says_so_and_hinders_no_other(tats, monkeypatch):
    points = [
        EntryPoint(words, "no_such_module:count", "tats.commands") for words in ("data count", "lab tidy")
    ]
    monkeypatch.setattr(app.COMMANDS, "_plugins", EntryPoints(points))
    assert "  lab        Commands of lab.\n" in tats("--help").out
    assert "  count     Not usable: the command" in tats("data", "--help").out
    ended = tats("data", "count")
    assert ended.code == 2
    assert "cannot be imported (ModuleNotFoundError: No module named 'no_such_module')" in ended.err
    assert tats("data", "generate", "--help").code == 0


def test_a_call_imports_no_other_command(tmp_path):
    code = (
        "import sys\nfrom tats_core.cli.app import main\nsys.argv = ['tats', 'gc', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.startswith('tats_core.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = done.stdout.splitlines()[-1]
    assert "tats_core.cli.gc" in imported
    assert "tats_core.cli.sweep" not in imported


def test_an_error_is_one_sentence_without_a_traceback(tats):
    ended = tats("run", "pipeline", "ful_ssv2")
    assert ended.code == 2
    assert ended.err.startswith("tats: no pipeline named 'ful_ssv2' (looked in ./pipelines and ")
    assert ended.err.endswith("; did you mean 'full_ssv2'?\n")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["resluts"], "'tats' has no command 'resluts'; did you mean 'results'?"),
        (["data", "generat"], "'tats data' has no command 'generat'; did you mean 'generate'?"),
        (["run", "pipline"], "'tats run' has no command 'pipline'; did you mean 'pipeline'?"),
        (["run", "pipeline", "demo", "--plann"], "run pipeline: no option '--plann'; did you mean '--plan'?"),
        (["sync", "--frm"], "sync: no option '--frm'; valid: --help, --home"),
        (["--versio"], "no option '--versio'; did you mean '--version'?"),
        (["run", "pipeline"], "run pipeline: missing argument 'NAME'; see tats run pipeline --help"),
        (
            ["submit", "pipline", "demo"],
            "submit: invalid value for 'KIND': 'pipline' is not one of 'pipeline', 'sweep'; "
            "did you mean 'pipeline'?",
        ),
        (
            ["run", "pipeline", "demo", "--on-error", "wait"],
            "run pipeline: invalid value for '--on-error': 'wait' is not one of 'stop', 'continue'; "
            "see tats run pipeline --help",
        ),
        (
            ["ui", "--port", "0"],
            "ui: invalid value for '--port': must be greater than or equal to 1; see tats ui --help",
        ),
        (["run", "pipeline", "demo", "--set"], "Option '--set' requires an argument."),
    ],
)
def test_a_wrong_command_line_is_one_sentence_that_names_the_nearest(tats, words, sentence):
    assert tats(*words) == Ended(2, "", f"tats: {sentence}\n")


def test_a_group_without_a_command_prints_its_help(tats):
    ended = tats("data")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: tats data [OPTIONS]")


def test_the_home_folder_of_an_unknown_user_is_refused_in_one_sentence(tats):
    ended = tats("runs", "--home", "~nosuchuser/runs")
    assert ended.code == 2
    sentence = "'~' cannot be expanded to a folder here; give the full path"
    assert ended.err == f"tats: --home ~nosuchuser/runs: {sentence}\n"


def test_a_pipeline_named_without_the_word_pipeline_is_understood(tats, tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "mine.yaml").write_text("name: mine\nstages: {}")
    ended = tats("run", "mine")
    assert ended.code == 2
    assert ended.err == "tats: 'tats run mine' is incomplete; did you mean 'tats run pipeline mine'?\n"


def test_list_shows_names_and_titles_in_columns(tats, tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "a_name_longer_than_any.yaml").write_text("title: The long one.")
    ended = tats("list")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0] == "a_name_longer_than_any  The long one."
    assert any(line.startswith("full_ssv2               ") for line in lines)


def test_a_broken_file_hides_no_other_file_from_the_list(tats, tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "a_broken.yaml").write_text("title: [")
    ended = tats("list")
    assert ended.code == 2
    assert ended.out.splitlines()[0] == "a_broken"
    assert "full_ssv2" in ended.out
    assert "Sweeps" in ended.out
    assert ended.err.startswith(f"tats: {tmp_path / 'pipelines' / 'a_broken.yaml'}, line 1: ")


def test_a_terminal_that_lacks_letters_shows_the_rest(tmp_path):
    matrix = "stages: {a: {kind: command, run: 'true', matrix: {cpus: [0, 1]}}}"
    (tmp_path / "mine.yaml").write_text(matrix)
    command = [sys.executable, "-m", "tats_core", "run", "pipeline", "mine.yaml", "--plan"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "a ? 2  run: has no output yet" in done.stdout  # a × 2
