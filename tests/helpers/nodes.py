"""A Ray cluster of two nodes on this machine."""

import contextlib
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.helpers.waiting import free_port

AGENTS = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")


class Nodes:
    """Two raylets of a CPU each; RAY_ADDRESS names them."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster

    @contextlib.contextmanager
    def one_more(self, **environment: str) -> Iterator[None]:
        """A third one until the block ends, whose processes have these variables."""
        node = self._cluster.add_node(num_cpus=1, env_vars=environment, **_ports())
        try:
            yield
        finally:
            self._cluster.remove_node(node)

    @property
    def processes(self) -> list[psutil.Process]:
        """Those of the node that no driver is connected to."""
        (node,) = self._cluster.worker_nodes
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [raylet, *raylet.children(recursive=True)]

    def lose_one(self) -> None:
        """As a power failure does it: that node, and all that it has started."""
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _ports() -> dict[str, int]:
    """A raylet ends itself where its agents take too long to choose theirs."""
    return {name: free_port() for name in AGENTS}


@contextlib.contextmanager
def two_nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="no Ray: make scale")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, **_ports()},
        )
        try:
            cluster.add_node(num_cpus=1, **_ports())
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield Nodes(cluster)
        finally:
            cluster.shutdown()
