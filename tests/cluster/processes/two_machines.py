"""A Ray cluster of two nodes with a dashboard; prints its address, ends with its standard input."""

from __future__ import annotations

import socket
import sys

from ray.cluster_utils import Cluster


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


port = free_port()
cluster = Cluster(
    initialize_head=True,
    head_node_args={
        "num_cpus": 1,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
        "dashboard_agent_listen_port": free_port(),
    },
)
cluster.add_node(num_cpus=1, dashboard_agent_listen_port=free_port())
cluster.wait_for_nodes()
print(f"http://127.0.0.1:{port}", flush=True)  # noqa: T201 (the test waits for it)
sys.stdin.read()
cluster.shutdown()
