"""A trial as Ray Tune runs it, in a process of Tune's. This module is imported in that process."""

from __future__ import annotations

import json
import queue
import threading
from pathlib import Path
from typing import Any

from ray import tune

from tats_core.launch import local, ray_train
from tats_core.sweep import trial
from tats_core.sweep.spec import Sweep, Trial
from tats_core.sweep.trial import Row, TrialResult


class PipelineTrial(tune.Trainable):
    """Runs a trial's pipeline in a thread; each step of Tune is an epoch.

    A class instead of a function: `cleanup` waits until the trial's stages have ended, so that an early stop
    frees its resources, and the next trial reuses the process. A trial of one-worker CPU stages takes one CPU
    and trains in a process forked by `launch.local`; any other takes almost nothing itself, and the Ray Train
    workers that it starts take what they need.
    """

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], *, sweep: Sweep, home: Path, run_id: str, in_process: bool
    ) -> None:
        """Prepare a trial; its values are passed as text, because Tune would split dotted keys."""
        this_trial = Trial(**json.loads(config["values"]))
        self.rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self.result: TrialResult | None = None
        self.folder = home / "runs" / run_id / "trials" / this_trial.id
        launch = local.fit if in_process else ray_train.fit

        def work() -> None:
            try:
                self.result = trial.run(sweep, this_trial, home, run_id, self.rows, self.stopped, launch)
            finally:
                self.rows.put(None)

        self.thread = threading.Thread(target=work, daemon=True)

    def step(self) -> dict[str, Any]:
        """Wait for the next epoch, or the end."""
        # Not in `setup`: Tune may set a trial up and then give it to an actor that became free.
        if self.thread.ident is None:
            self.thread.start()
        row = self.rows.get()
        if row is not None:
            return dict(row)
        # Not earlier: by now the scheduler has seen every epoch and has not stopped the trial.
        if self.result is not None:
            self.result.save(self.folder)
        return {"done": True}

    def cleanup(self) -> None:
        """Stop the trial's stages and wait for them."""
        self.stopped.set()
        if self.thread.ident is not None:
            self.thread.join()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial, in the same process."""
        self.cleanup()
        self.setup(new_config)  # type: ignore[call-arg]
        return True
