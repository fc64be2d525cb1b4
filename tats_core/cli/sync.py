"""`tats sync`."""

from __future__ import annotations

import typer

from tats_core.cli.options import DEFAULT_HOME, Home
from tats_core.errors import RunError


def sync(home: Home = DEFAULT_HOME) -> None:
    """Send to MLflow what runs left on disk while its server was away, in order and once."""
    from tats_core import tracking
    from tats_core.store.journal import pending

    home = home.expanduser().absolute()
    if not pending(home):
        typer.echo(f"Nothing waits in {home}: MLflow was told everything.")
        return
    left = tracking.sync(home, say=typer.echo)
    if left:
        runs = "1 run waits" if left == 1 else f"{left} runs wait"
        raise RunError(f"{runs} still; try again when the tracking server answers")
