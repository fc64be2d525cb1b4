"""`tats sync`."""

from __future__ import annotations

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, many
from tats_core.errors import RunError, StoreError


def sync(home: Home = DEFAULT_HOME) -> None:
    """Send to MLflow what it missed while it was unreachable."""
    from tats_core import tracking
    from tats_core.store.journal import pending

    if not pending(home):
        typer.echo(f"Nothing to send: MLflow has everything that is in {home}.")
        return
    errors = tracking.sync(home, log=typer.echo)
    if errors:
        still = "is" if len(errors) == 1 else "are"
        permanent = any(isinstance(error, StoreError) for error in errors)  # RefusedError, or a damaged file
        again = "mend that, and try again" if permanent else "try again when the MLflow server answers"
        raise RunError(f"{many(len(errors), 'run')} {still} not sent yet; {again}")
