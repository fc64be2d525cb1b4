"""docs/operations.md as its reader follows it, and the cluster as seen from outside."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from testing.host import expect, run

HOME = "/srv/tats"
AT_HEAD = ("--address", "http://head:8265")


class Server:
    """A published port, reached from outside the cluster's networks."""

    def __init__(self, port: str, authorization: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.headers = {"Authorization": authorization, "Host": f"localhost:{port}"}

    def get(self, path: str, **headers: str | None) -> tuple[int, bytes]:
        """Return status and body; a header that is None is left out."""
        present = {name: value for name, value in {**self.headers, **headers}.items() if value is not None}
        return self._send(urllib.request.Request(self.url + path, headers=present))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of MLflow's API to a request."""
        headers = {**self.headers, "Content-Type": "application/json"}
        url = f"{self.url}/api/2.0/mlflow/{path}"
        status, text = self._send(urllib.request.Request(url, json.dumps(body).encode(), headers))
        expect(status == 200, f"{path} is answered", f"{status} {text!r}", silent=True)
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _send(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


class Guide:
    """The guide in a copy of the checkout, and which of its commands were run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exports: list[str] = []
        self.blocks: dict[str, list[str]] = {}
        self.done: set[str] = set()
        text = (folder / "docs" / "operations.md").read_text()
        for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
            heading, _, rest = section.partition("\n")
            self.blocks[heading] = re.findall(r"^```sh\n(.*?)^```", rest, re.MULTILINE | re.DOTALL)

    def follow(self, heading: str, number: int = 1, limit: float | None = None) -> str:
        """Run a block of commands of a section, counted from 1; return what it printed.

        Args:
            limit: seconds after which it fails; None: none.
        """
        block = self.blocks[heading][number - 1]
        began = time.monotonic()
        done = self.shell("\n".join([*self.exports, block]), limit)
        took = time.monotonic() - began
        expect(done.returncode == 0, f"{heading}, {number} ({took:.0f} s)", block + done.stdout + done.stderr)
        self.exports += [line for line in block.splitlines() if line.startswith("export ")]
        self.done.add(block)
        return done.stdout

    def skipped(self) -> list[str]:
        """Return the blocks that were not run."""
        return [block for blocks in self.blocks.values() for block in blocks if block not in self.done]

    def shell(self, commands: str, limit: float | None = None) -> subprocess.CompletedProcess[str]:
        return run("sh", "-euc", commands, check=False, timeout=limit, cwd=self.folder)

    def compose(
        self, *words: str, check: bool = True, limit: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        return run("docker", "compose", *words, check=check, timeout=limit, cwd=self.folder)

    def tats(
        self, *words: str, check: bool = True, limit: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.compose("run", "--rm", "tats", *words, *AT_HEAD, check=check, limit=limit)

    def inside(self, service: str, command: str) -> str:
        """Return what a shell command prints in a container, or nothing."""
        return self.compose("exec", "-T", service, "sh", "-c", command, check=False).stdout.strip()

    def containers(self, *services: str) -> list[str]:
        return self.compose("ps", "--quiet", *services).stdout.split()

    def logs(self) -> str:
        return self.compose("logs", "--tail", "60", check=False).stdout

    def secret(self, name: str) -> str:
        return (self.folder / "docker" / "secrets" / name).read_text()

    def mlflow(self) -> Server:
        return Server(os.environ["TATS_MLFLOW_PORT"], basic(self.secret("mlflow_password")))

    def ray(self) -> Server:
        return Server(os.environ["TATS_RAY_PORT"], f"Bearer {self.secret('ray_token')}")

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        """Return the runs of an experiment, newest first."""
        server = self.mlflow()
        known = server.post("experiments/search", {"max_results": 100})["experiments"]
        ids = [match["experiment_id"] for match in known if match["name"] == experiment]
        runs = server.post("runs/search", {"experiment_ids": ids, "max_results": 500}).get("runs", [])
        return sorted(runs, key=lambda run: int(run["info"]["start_time"]), reverse=True)

    def newest(self, experiment: str) -> str:
        """Return the id of the newest pre-training of an experiment."""
        infos = (run["info"] for run in self.runs(experiment))
        return next(str(info["run_id"]) for info in infos if "pretrain" in info["run_name"])

    def curve(self, run_id: str, key: str) -> list[dict[str, Any]]:
        """Return the points of a curve: `step`, `value`, `timestamp` in milliseconds."""
        path = f"/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key={key}"
        points: list[dict[str, Any]] = json.loads(self.mlflow().get(path)[1]).get("metrics", [])
        return points

    def weights(self, stage: str, home: str = HOME) -> str:
        """Return the sha256 of the weights that a stage has trained, with its key."""
        return self.inside("head", f"cd {home}/stages && sha256sum {stage}-*[0-9a-f]/*.safetensors")


def basic(password: str) -> str:
    """Return the header of the guide's user."""
    return f"Basic {base64.b64encode(f'tats:{password}'.encode()).decode()}"
