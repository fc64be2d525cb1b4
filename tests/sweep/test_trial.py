from __future__ import annotations

import queue
import threading

from tats_core.errors import StageError
from tats_core.pipeline import runner
from tats_core.sweep import spec, trial


def run(tmp_path, monkeypatch, error: Exception) -> trial.TrialResult:
    def failing(*args, **more):
        raise error

    monkeypatch.setattr(runner, "run", failing)
    sweep = spec.load("demo_ratio")
    given = sweep.trials_of(sweep.points()[0])[0]
    ended = trial.run(sweep, given, tmp_path, "r", queue.SimpleQueue(), threading.Event(), None)
    assert ended is not None
    assert ended.settings == given.overrides
    assert not list(tmp_path.iterdir()), "it is saved once all its epochs were seen"
    return ended


def test_a_trial_that_fails_has_its_cause(tmp_path, monkeypatch) -> None:
    ended = run(tmp_path, monkeypatch, StageError("its worker died"))
    assert (ended.status, ended.error) == ("failed", "its worker died")


def test_a_bug_in_one_trial_is_a_failed_trial_and_not_one_stopped_early(tmp_path, monkeypatch) -> None:
    ended = run(tmp_path, monkeypatch, KeyError("x"))
    assert (ended.status, ended.error) == ("failed", "KeyError: 'x' (a bug)")
