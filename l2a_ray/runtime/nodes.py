"""The nodes of a Ray cluster, asked one by one: above all, whether they have the driver's code of this project."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from l2a_ray.errors import ClusterError

logger = logging.getLogger(__name__)
Node = dict[str, Any]
"""What `ray.nodes` says of a node."""
PATIENCE = 120
"""Seconds that a node has to answer: on a busy machine the first worker process takes 20 to start."""
_agreed: set[str] = set()


def resources() -> dict[str, float]:
    """Return what all nodes have together, by Ray's names: CPU, GPU."""
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def living() -> list[Node]:
    """Return the nodes that are there now."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def check_code(alive: Sequence[Node]) -> None:
    """Compare the code of this project on nodes that have not been asked yet with the driver's.

    A session asks at its start and at that of each stage, so nodes that join later are asked at the next stage.

    Raises:
        ClusterError: a node lacks it, or has other code.
    """
    asked = [node for node in alive if node["NodeID"] not in _agreed]
    if len(alive) < 2 or not asked:
        return
    read = _code_reader()
    here, answers = read(), ask_nodes(read, asked)
    for node in asked:
        there = answers.get(node["NodeID"])
        if there is None:
            logger.warning("node %s did not say which code it has", node["NodeManagerAddress"])
        elif there[0] != here[0]:
            who = f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
            raise ClusterError(
                f"{who} has {there[1]}; the driver has {here[1]}. "
                "Install the same code on all nodes (`ray up` does), or submit the run as a job, which brings its own: "
                "docs/cluster.md"
            )
        else:
            _agreed.add(node["NodeID"])


def _code_reader() -> Callable[[], tuple[str, str]]:
    def read() -> tuple[str, str]:
        """Return a digest of this project's code and the same in words."""
        # Within a function: it travels as it is, to a node that may lack this module.
        try:
            from l2a_ray.storage.provenance import code_digest, code_folder, package_version

            digest = code_digest()
        except ImportError as error:
            return "", f"not all of this project's code ({error})"
        version = package_version("l2a-ray") or "not installed"
        return digest, f"l2a-ray {version}, code {digest} in {code_folder().parent}"

    return read


def ask_nodes(question: Callable[[], Any], nodes: Sequence[Node]) -> dict[str, Any]:
    """Run a function on each node, whether it offers CPUs or not; return the answers that came, by node id."""
    task = ray.remote(question)
    refs = {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        refs[task.options(num_cpus=0, scheduling_strategy=strategy).remote()] = node["NodeID"]
    ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=PATIENCE)
    answers = {}
    for ref in ready:
        try:
            answers[refs[ref]] = ray.get(ref)
        except ray.exceptions.RayError as error:  # a node that died meanwhile
            logger.warning("a node did not answer: %s", error)
    return answers
