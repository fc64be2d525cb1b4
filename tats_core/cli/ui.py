"""`tats ui`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from tats_core.addresses import masked
from tats_core.cli.options import DEFAULT_HOME, Home, command_line
from tats_core.errors import ResourceError, RunError, StoreError

_START_SECONDS = 60.0


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of the web page.")] = 5000,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines connect.")
    ] = "127.0.0.1",
    open_page: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open it in a web browser; default: in a desktop's terminal."),
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show the runs of this project in MLflow's web page, which is served until Ctrl-C.

    The address shows the newest pipeline or sweep. Runs that only reused what others had made are left out
    (empty the page's filter to see them).
    """
    from tats_core import tracking

    uri = tracking.tracking_uri(home)
    if uri.startswith(("http://", "https://")):
        _show_server(home, uri, open_page)
        return
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (home / "mlflow.db").exists():
        start = command_line(["run", "pipeline", "demo"], home)
        raise RunError(f"nothing has run in {home} yet, so there is nothing to show; start with: {start}")
    if _answers(host, port):
        raise ResourceError(f"port {port} of {host} is in use; give another port with --port")
    address = _newest(home, uri, f"http://{f'[{host}]' if ':' in host else host}:{port}")
    log = home / "ui.log"
    # `kill` ends the page as Ctrl-C does; by itself it would leave the server behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _serving(uri, home, host, port, log) as server:
            typer.echo(f"MLflow shows the runs of {home} at {address} (Ctrl-C ends it)")
            _open(address, open_page)
            code = server.wait()
    except KeyboardInterrupt:
        return
    raise RunError(f"the MLflow server ended by itself with exit code {code}; its messages are in {log}")


def _show_server(home: Path, uri: str, open_page: bool | None) -> None:
    from tats_core import tracking
    from tats_core.tracking import view

    page = masked(uri).rstrip("/")
    try:
        address, refusal = view.on_server(home, uri, page, lambda: _newest(home, uri, page))
    except tracking.AwayError as error:
        typer.echo(f"The runs are on an MLflow server that does not answer now: {page} ({error})")
        return
    if refusal:
        typer.echo(f"tats: warning: the server keeps no view of the newest runs ({refusal})", err=True)
    typer.echo(f"The runs are on an MLflow server: open {address}")
    _open(address, open_page)


def _newest(home: Path, uri: str, page: str) -> str:
    """Return the address of the newest pipeline or sweep; brings a database of an older MLflow up to date."""
    from tats_core import tracking
    from tats_core.store import history
    from tats_core.tracking import view

    client = tracking.connect(home, uri)
    for error in tracking.sync(home):  # what a killed run left, and that it was killed
        typer.echo(f"tats: warning: {masked(str(error))}", err=True)
    newest = next(history.records(home), None)
    if newest is None:
        return page
    try:
        return view.address(client, page, newest)
    except StoreError as error:  # its own files are damaged; all others can be shown
        typer.echo(f"tats: warning: {error}", err=True)
        return f"{page}/#/experiments"


def _open(address: str, wanted: bool | None) -> None:
    desktop = sys.platform == "darwin" or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if wanted or (wanted is None and desktop and sys.stdout.isatty()):
        webbrowser.open(address)


@contextmanager
def _serving(uri: str, home: Path, host: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start MLflow's server, wait until it answers, and end it, with its workers, afterwards."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--artifacts-destination", (home / "mlflow-artifacts").as_uri()]
    command += ["--host", host, "--port", str(port)]
    # Otherwise seven more processes wait for jobs (scoring of language models) that never come.
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **os.environ,
        # Not on the command line, which every user of the machine can read: it may hold a password.
        "MLFLOW_BACKEND_STORE_URI": uri,
    }
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    messages = f"its messages are in {log}"
    deadline = time.monotonic() + _START_SECONDS
    try:
        while not _answers(host, port):
            if server.poll() is not None:
                raise RunError(f"the MLflow server ended with exit code {server.returncode}; {messages}")
            if time.monotonic() > deadline:
                limit = f"within {_START_SECONDS:.0f} s"
                raise RunError(f"the MLflow server did not answer on {host}:{port} {limit}; {messages}")
            time.sleep(0.2)
        yield server
    finally:
        server.terminate()  # it got Ctrl-C too, so mostly it has ended or is ending already
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _answers(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False
