"""What a user sees of one small run and one small sweep, written down so that it can be compared.

    python tests/golden/capture.py --out FOLDER     run everything in a fresh folder, write into FOLDER
    python tests/golden/capture.py --write          the same into tests/golden/expected: then read the diff

Only the command line and MLflow's client are used, so this file outlives any move of modules. What depends on
the day, the machine or the code (times, ids, paths, digests, measured numbers) becomes a placeholder; names,
their order, their types and all that follows from the configuration stay.
"""

from __future__ import annotations

import argparse
import html.parser
import importlib
import json
import os
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
EXPECTED: Final = HERE / "expected"
ROOT: Final = HERE.parents[1]

ATTEMPTS: Final = 3
RUN, SWEEP, FAILING = "golden", "golden_sweep", "golden_failing"

_CONFIGURED: Final = {"config", "settings", "point", "configuration", "space", "mask_ratio", "chance", "set"}
"""Below these keys a fraction was written by a person; elsewhere it was measured."""

_COUNTED: Final = {"pid", "size", "said_from", "said_to", "at_a_time"}
"""Whole numbers that differ from machine to machine."""


# --- running commands -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Project:
    """A fresh folder with the pipelines and sweeps of this one, in which `tats` is called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.home = self.folder / "home"
        for menu in ("pipelines", "sweeps"):
            shutil.copytree(HERE / menu, self.folder / menu, dirs_exist_ok=True)
        self.environment = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith(("TATS_", "MLFLOW_"))
            },
            "TATS_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "110",
            "NO_COLOR": "1",
            "TZ": "UTC",
            "LC_ALL": "C.UTF-8",
        }

    def run(self, *words: str) -> Ended:
        """Call `tats WORDS…` in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "tats_core", *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def fork(self, *words: str) -> Ended:
        """The same in a fork of this process, which has imported the slow libraries for all of them."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            sys.stdout.flush()
            sys.stderr.flush()
            child = os.fork()
            if child == 0:
                self._become(words, out.fileno(), err.fileno())
            _, status = os.waitpid(child, 0)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        return Ended(os.waitstatus_to_exitcode(status), *texts)

    def _become(self, words: Sequence[str], out: int, err: int) -> None:
        code: Any = 1
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.chdir(self.folder)
            os.environ.clear()
            os.environ.update(self.environment)
            sys.argv = ["tats", *words]
            runpy.run_module("tats_core", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except Exception:  # noqa: BLE001 (shown as Python would show it, then compared)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)


# --- taking out what differs ------------------------------------------------------------------------------


class Plain:
    """Replaces what no two captures have in common."""

    def __init__(self, project: Project) -> None:
        counts: dict[str, int] = {}
        self.known: list[tuple[str, str]] = []
        for name in sorted(path.name for path in (project.home / "runs").iterdir()):  # an id holds its time
            pipeline = re.sub(r"-\d{8}-.*", "", name)
            counts[pipeline] = counts.get(pipeline, 0) + 1
            self.known.append((name, f"<run {pipeline} {counts[pipeline]}>"))
        self.known += [
            (str(project.home), "<home>"),
            (str(project.folder), "<folder>"),
            (str(ROOT), "<code>"),
        ]

    def text(self, text: str) -> str:
        """Of a sentence or table: fractions, times and the widths that follow from them go, too."""
        text = self.name(text)
        text = re.sub(r"(?<![\w.])\d+:\d\d(:\d\d)?\b", "<time>", text)
        text = re.sub(
            r"(?<![\d.])\d+(\.\d+)? ?(ms|s|m|min|h|d|MB|MiB|kB|GB|GiB)(?![A-Za-z])", "<amount>", text
        )
        text = re.sub(r"<amount>([ ,]*<amount>)+", "<amount>", text)
        text = re.sub(r"[-+−]?(?<![\w.])\d+(\.\d+(e[-+]?\d+)?|e[-+]\d+)%?", "#", text)
        text = re.sub(r"[-+−]?\d+\.\d+%?", "#", text)  # that follows a word without a space
        text = re.sub(r"(\*\*|\\textbf\{)#(\*\*|\})", "#", text)  # the best one is marked
        text = re.sub(r"\b\d+(?=% of the time)", "#", text)
        text = re.sub(r"(but there are |\(--set pretrain\.workers=)\d+", r"\1<CPUs>", text)
        return re.sub(r" {2,}", "  ", re.sub(r"([-─━═])\1{2,}", r"\1\1\1", text))

    def name(self, text: str) -> str:
        """Of anything: ids, paths, digests and dates go."""
        for given, name in self.known:
            text = text.replace(given, name)
        text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)?( UTC|Z|\+00:00)?", "<time>", text)
        text = re.sub(r"\b\d{4}-\d\d-\d\d\b", "<date>", text)
        text = re.sub(r"(?<![\w.])(?=[0-9a-f]*\d)[0-9a-f]{12,64}\b", "<digest>", text)
        return re.sub(r"(?<![\w.])(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{7,11}\b", "<digest>", text)

    def value(self, value: Any, key: str = "", configured: bool = False) -> Any:
        """Of JSON: keys, their order and types stay; a measured number becomes the name of its type."""
        configured = configured or key in _CONFIGURED
        if isinstance(value, Mapping):
            return {self.name(k): self.value(v, k, configured) for k, v in value.items()}
        if isinstance(value, list):
            return [self.value(item, key, configured) for item in value]
        if isinstance(value, str):
            return self.name(value) if configured else self.text(value)
        if isinstance(value, float) and not configured:
            return "<time>" if value > 1e9 else "<number>"
        if isinstance(value, int) and not isinstance(value, bool) and key in _COUNTED:
            return "<count>"
        return value

    def json(self, text: str) -> str:
        """Of a command's JSON."""
        return json.dumps(self.value(json.loads(text)), indent=1, ensure_ascii=False) + "\n"


class _Visible(html.parser.HTMLParser):
    """What a reader sees of a page, one line a block; pictures and charts are a word each."""

    HIDDEN = ("style", "script", "svg", "title")
    INLINE = ("a", "b", "code", "em", "i", "span", "strong", "sub", "sup", "small", "abbr", "time", "kbd")

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[tuple[str, str]] = []
        self._text = ""
        self._tag = ""
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.INLINE:
            self._end_line()
            self._tag = tag
        if tag in ("img", "svg") and not self._hidden:
            self.blocks.append(("picture", "[picture]"))
        if tag in self.HIDDEN:
            self._hidden += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in self.HIDDEN:
            self._hidden -= 1
        if tag not in self.INLINE:
            self._end_line()

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._text += data

    def _end_line(self) -> None:
        text = " ".join(self._text.split())
        self._text = ""
        if text:
            self.blocks.append((self._tag, text))


_HOST: Final = {
    "tats", "python", "system", "machine", "processor", "CPUs", "GPUs", "torch", "timm", "ray", "mlflow",
    "pydantic", "numpy", "av", "decord", "git commit",
}  # fmt: skip
"""What a page says of these under "Environment" differs from machine to machine."""


def visible(page: str) -> str:
    """Return the text of a page in the order in which it is read, without what its tables measured."""
    parser = _Visible()
    parser.feed(page)
    parser.close()
    # Which class was taken for which is measured, too.
    names = {text for tag, text in parser.blocks if tag == "th"}
    lines, varies = [""], {"in training steps"}
    for tag, text in parser.blocks:
        # A digest may consist of digits alone.
        is_number = re.fullmatch(r"[-+−–±\d.,e%() ]*", text) and not re.fullmatch(r"[\de]{12}", text)
        if tag == "td" and (text in names or is_number):
            continue
        if text == lines[-1] == "[picture]":
            continue
        if (tag, text) == ("h2", "Environment"):
            varies |= _HOST
        lines.append("…" if lines[-1] in varies else text)
    return "\n".join(lines[1:]) + "\n"


# --- what is captured -----------------------------------------------------------------------------------

MISTAKES: Final[tuple[tuple[str, ...], ...]] = (
    ("nosuchcommand",),
    ("run", RUN),
    ("run", "pipeline", "goldn"),
    ("run", "pipeline", "absent.yaml"),
    ("run", "pipeline", RUN, "--nosuchoption"),
    ("run", "pipeline", RUN, "--set", "pretrain.sampler.mask_ration=0.9"),
    ("run", "pipeline", RUN, "--set", "pretrain.sampler.mask_ratio=2"),
    ("run", "pipeline", RUN, "--set", "pretrain.sampler.kind=tuts"),
    ("run", "pipeline", RUN, "--set", "pretrain.epochs=many"),
    ("run", "pipeline", RUN, "--set", "pretrain.epochs=-1"),
    ("run", "pipeline", RUN, "--set", "pretrain.clip.patch=7"),
    ("run", "pipeline", RUN, "--set", "pretrian.epochs=1"),
    ("run", "pipeline", RUN, "--set", "defaults.modle=vit_base"),
    ("run", "pipeline", RUN, "--set", "pretrain.model=vit_bsae"),
    ("run", "pipeline", RUN, "--set", "pretrain.epochs"),
    ("run", "pipeline", RUN, "--set", "pretrain.workers=512", "--set", "pretrain.batch_size=512"),
    ("run", "pipeline", RUN, "--set", "data.generate=null", "--set", "data.benchmarks=[ucf101]"),
    ("run", "pipeline", RUN, "--set", "evaluate.benchmark=ucf102"),
    ("run", "pipeline", RUN, "--only", "fintune"),
    ("run", "pipeline", RUN, "--from", "nowhere"),
    ("run", "pipeline", RUN, "--graph", "plan.bmp"),
    ("run", "pipeline", "circle"),
    ("run", "pipeline", "unknown_kind"),
    ("run", "pipeline", "missing_need"),
    ("run", "pipeline", "other_name"),
    ("run", "pipeline", "no_yaml"),
    ("run", "pipeline", "no_yaml", "--json"),
    ("run", "pipeline", FAILING),
    ("results", "nosuchrun"),
    ("results", "demo"),
    ("results", FAILING),
    ("report", RUN, "--format", "pdf"),
    ("report", RUN, "--out", "absent/folder/page.md"),
    ("report", FAILING),
    ("runs", "--pipeline", "goldn"),
    ("show", "nosuchrun"),
    ("show", RUN, "ucf101/pretrained/top2"),
    ("show", RUN, "finetune"),
    ("logs", RUN, "nosuchstage"),
    ("compare", RUN),
    ("compare", RUN, RUN),
    ("compare", RUN, FAILING, "--plot", "curve.bmp"),
    ("compare", RUN, FAILING, "--plot", "curve.svg", "--metric", "los"),
    ("stop", RUN),
    ("sweep", "golden_swep"),
    ("sweep", SWEEP, "--set", "space.pretrain.sampler.mask_ratio=[0.5, 2]"),
    ("sweep", SWEEP, "--set", "space.pretrain.sampler.mask_ration=[0.5]"),
    ("sweep", SWEEP, "--set", "metrics=[{name: pretrain.visibel, mode: max}]"),
    ("sweep", SWEEP, "--set", "sarcher.kind=grid"),
    ("sweep", SWEEP, "--set", "searcher.kind=grit"),
    ("sweep", SWEEP, "--set", "seeds.values=[5]", "--resume"),
    ("visualise", "nosuchrun", "absent.mp4"),
    ("predict", "nosuchrun", "absent.mp4"),
    ("export", RUN, "--format", "hf", "--out", "exported"),
    ("weights", "absent.safetensors"),
    ("data", "check", "nosuchdata"),
    ("data", "generate", "--out", "made", "--preset", "easy"),
    ("runs", "--home", "~nosuchperson/home"),
)

BROKEN: Final = {
    "circle": "stages:\n  a: {kind: command, run: x, needs: b}\n  b: {kind: command, run: x, needs: a}\n",
    "unknown_kind": "stages:\n  a: {kind: pretrian}\n",
    "missing_need": "stages:\n  a: {kind: command, run: x, needs: c}\n  b: {kind: command, run: x}\n",
    "other_name": "name: another\nstages:\n  a: {kind: command, run: 'true'}\n",
    "no_yaml": "stages:\n  a: {kind: command, run: [\n",
}

LIBRARIES: Final = (
    "torch",
    "timm.layers",
    "pandas",
    "matplotlib.figure",
    "pydantic",
    "typer",
    "rich.table",
    "mlflow",
)
"""What takes seconds to import, and none of it is ours."""

COMMANDS: Final = (
    "run pipeline", "sweep", "submit pipeline", "submit sweep", "jobs", "list", "explain", "runs", "show",
    "logs", "stop", "results", "compare", "report", "ui", "visualise", "predict", "export", "weights",
    "data generate", "data check", "doctor", "sync", "gc",
)  # fmt: skip


def capture(folder: Path, log: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """Yield name and content of every golden file, made in `folder`."""
    project = Project(folder)
    codes: dict[str, int] = {}

    def call(how: Callable[..., Ended], *words: str) -> Ended:
        ended = how(*words)
        codes[" ".join(words)] = ended.code
        log(f"{ended.code:>3}  tats {' '.join(words)}")
        return ended

    def good(how: Callable[..., Ended], *words: str) -> str:
        ended = call(how, *words)
        assert ended.code == 0, f"tats {' '.join(words)}\n{ended.out[-2000:]}\n{ended.err[-4000:]}"
        return ended.out

    events = _run_all(project, good)
    for library in LIBRARIES:
        importlib.import_module(library)
    _import_all()
    for name, text in BROKEN.items():
        (project.folder / "pipelines" / f"{name}.yaml").write_text(text)
    fork = project.fork
    mistakes = {words: call(fork, *words) for words in MISTAKES}
    plain = Plain(project)
    ids = {name: given for given, name in plain.known}
    first = ids[f"<run {RUN} 1>"]

    yield "run_events.json", _events(plain, events)
    yield "plan.json", plain.json(good(fork, "run", "pipeline", RUN, "--plan", "--json"))
    yield "plan_graph.txt", plain.text(good(fork, "run", "pipeline", RUN, "--plan", "--graph", "-"))
    yield "sweep_plan.json", plain.json(good(fork, "sweep", SWEEP, "--plan", "--json"))
    yield "runs.json", plain.json(good(fork, "runs", "--all", "--json"))
    first_run = good(fork, "show", first, "--json")
    yield "show.json", plain.json(first_run)
    yield "show_number.json", plain.json(good(fork, "show", first, "ucf101/pretrained/top1", "--json"))
    yield "show_stage.json", plain.json(good(fork, "show", first, "probe[scratch]", "--json"))
    yield "compare.json", plain.json(good(fork, "compare", first, RUN, "--plot", "curve.svg", "--json"))
    for name, run in (("run", first), ("sweep", SWEEP)):
        yield f"results_{name}.json", plain.json(good(fork, "results", run, "--json"))
        yield f"results_{name}.txt", plain.text(good(fork, "results", run))
        for form in ("md", "csv", "latex", "html", "json"):
            text = good(fork, "report", run, "--format", form)
            if form == "html":
                yield f"report_{name}_html.txt", plain.text(visible(text))
            elif form == "json":
                yield f"report_{name}.json", plain.json(text)
            else:
                yield f"report_{name}.{form}", plain.text(text)
    yield "best.yaml", plain.name((project.home / "runs" / ids[f"<run {SWEEP} 1>"] / "best.yaml").read_text())
    yield "options.json", _options(good, fork)

    truncated = project.home / "runs" / ids[f"<run {FAILING} 1>"] / "run.json"
    truncated.write_text(truncated.read_text()[:100])
    (report,) = [stage for stage in json.loads(first_run)["stages"] if stage["name"] == "report"]
    (Path(report["folder"]) / "results.json").unlink()
    for words in (("runs",), ("show", FAILING), ("results", first), ("results", RUN)):
        ended = fork(*words)
        mistakes[(*words, "# corrupt")] = ended
        codes[" ".join((*words, "# corrupt"))] = ended.code
    yield "exit_codes.json", json.dumps({plain.name(k): code for k, code in codes.items()}, indent=1) + "\n"
    yield "messages.txt", _messages(plain, mistakes)
    yield "files.txt", _files(plain, project)
    yield "mlflow.json", json.dumps(_mlflow(plain, project), indent=1, ensure_ascii=False) + "\n"


def _import_all() -> None:
    """Import every module: each of the hundred forks would do so again."""
    import tats_core

    for module in pkgutil.walk_packages(tats_core.__path__, "tats_core."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _run_all(project: Project, good: Callable[..., str]) -> str:
    """Run the pipeline, the sweep, the pipeline with another value; return the events of the first run."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            events = good(project.run, "run", "pipeline", RUN, "--json")
            good(project.run, "sweep", SWEEP, "--json")
            good(project.run, "run", "pipeline", RUN, "--set", "evaluate.clips=1")
        except AssertionError as error:
            # Ray gives a node 30 s to start, which a very busy machine exceeds; there is no setting for it.
            if "timed out during startup" not in str(error) or attempt == ATTEMPTS:
                raise
            shutil.rmtree(project.home)
        else:
            return events
    raise AssertionError("unreachable")


def _events(plain: Plain, text: str) -> str:
    """Keys of each kind of event, parameters and end; the order of events is not repeatable."""
    events = [json.loads(line) for line in text.splitlines()]
    keys: dict[str, list[str]] = {}
    for event in events:
        keys.setdefault(event["event"], list(event))
    first, last = events[0], events[-1]
    params = {event["stage"]: plain.value(event["values"]) for event in events if event["event"] == "params"}
    progress = {event["stage"]: sorted(event["shown"]) for event in events if event["event"] == "progress"}
    seen = {
        "keys": dict(sorted(keys.items())),
        "plan": plain.value(first),
        "params": dict(sorted(params.items())),
        "shown": dict(sorted(progress.items())),
        "run_finished": plain.value(last),
    }
    return json.dumps(seen, indent=1, ensure_ascii=False) + "\n"


def _options(good: Callable[..., str], how: Callable[..., Ended]) -> str:
    """What each command can be given."""
    options: dict[str, list[str]] = {}
    for command in COMMANDS:
        text = good(how, *command.split(), "--help")
        words = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text.partition("Options:")[2])
        options[command] = sorted(set(words))
    return json.dumps(options, indent=1) + "\n"


def _messages(plain: Plain, mistakes: Mapping[tuple[str, ...], Ended]) -> str:
    """What the command line answers to each mistake."""
    parts = []
    for words, ended in mistakes.items():
        answer = ended.err if ended.err.strip() else ended.out
        parts.append(f"$ tats {' '.join(words)}\n{answer.strip()}\n")
    return plain.text("\n".join(parts))


def _files(plain: Plain, project: Project) -> str:
    """Names of all files in the project folder, but of those that Ray and MLflow name."""
    names: dict[str, None] = {}
    for path in sorted(project.home.rglob("*")):
        name = plain.name(str(path.relative_to(project.home)))
        # A patch exists only where the checkout has changes.
        if path.is_file() and not name.startswith("mlflow") and path.suffix != ".patch":
            names[re.sub(r"\d+", "0", name)] = None
    return "\n".join(sorted(names)) + "\n"


# --- MLflow -----------------------------------------------------------------------------------------------


def _mlflow(plain: Plain, project: Project) -> dict[str, Any]:
    """All that was sent to MLflow, by experiment and run."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{project.home / 'mlflow.db'}"
    client = MlflowClient(uri, registry_uri=uri)
    experiments: dict[str, Any] = {}
    for experiment in sorted(client.search_experiments(), key=lambda entity: entity.name):
        runs = client.search_runs([experiment.experiment_id], max_results=500)
        names = {run.info.run_id: plain.name(run.info.run_name) for run in runs}
        by_id = {run.info.run_id: run for run in runs}

        def path(run: Any, names: Mapping[str, str] = names, by_id: Mapping[str, Any] = by_id) -> str:
            parent = run.data.tags.get("mlflow.parentRunId")
            above = "" if parent not in by_id else path(by_id[parent]) + " / "
            return above + names[run.info.run_id]

        experiments[experiment.name] = {
            "tags": {key: plain.text(value) for key, value in sorted(experiment.tags.items())},
            "runs": {path(run): _run(plain, client, run) for run in sorted(runs, key=path)},
        }
    models = {
        model.name: {
            "aliases": sorted(model.aliases),
            "tags": sorted(model.tags),
            "versions": [
                {key: _tag(plain, key, value) for key, value in sorted(version.tags.items())}
                for version in sorted(
                    client.search_model_versions(f"name='{model.name}'"),
                    key=lambda version: version.tags["stage"],
                )
            ],
        }
        for model in sorted(client.search_registered_models(), key=lambda entity: entity.name)
    }
    return {"experiments": experiments, "models": models}


def _run(plain: Plain, client: Any, run: Any) -> dict[str, Any]:
    run_id = run.info.run_id
    metrics = {}
    for key in sorted(run.data.metrics):
        if not key.startswith("system/"):  # of the machine, as often as its time comes
            metrics[key] = ", ".join(str(point.step) for point in client.get_metric_history(run_id, key))
    return {
        "status": run.info.status,
        "tags": {key: _tag(plain, key, value) for key, value in sorted(run.data.tags.items())},
        "params": {key: plain.name(value) for key, value in sorted(run.data.params.items())},
        "metrics": metrics,
        "datasets": sorted(entry.dataset.name for entry in run.inputs.dataset_inputs),
        "artifacts": sorted({_artifact(p) for p in _artifacts(client, run_id) if not p.endswith(".patch")}),
    }


def _tag(plain: Plain, key: str, value: str) -> str:
    if key in ("mlflow.user", "mlflow.parentRunId", "source_run", "git_dirty"):
        return "…"
    return plain.text(value)


def _artifact(path: str) -> str:
    path = re.sub(r"\+timestamp\+\d+\+[0-9a-f-]+", "+timestamp+…", path)
    return re.sub(r"%timestamp%\d+%[0-9a-f-]+", "%timestamp%…", path)


def _artifacts(client: Any, run_id: str, path: str | None = None) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, path):
        if entry.is_dir:
            yield from _artifacts(client, run_id, entry.path)
        else:
            yield entry.path


def main() -> None:
    """Capture into the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--write", action="store_true", help="replace tests/golden/expected")
    target.add_argument("--out", type=Path, help="write into this folder")
    parser.add_argument("--keep", type=Path, help="make the runs in this (new) folder, and leave it there")
    given = parser.parse_args()
    out = EXPECTED if given.write else given.out
    with tempfile.TemporaryDirectory(prefix="golden-") as fresh:
        work = given.keep or Path(fresh)
        work.mkdir(parents=True, exist_ok=True)
        files = dict(capture(work, lambda line: print(line, file=sys.stderr, flush=True)))  # noqa: T201
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
