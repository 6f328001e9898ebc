"""What a run asks of its Ray cluster: reported before any work if it is not there, not after an hour of waiting.

Ray waits for ever for what no node has. So the settings' demands are compared with the nodes that are alive.
"""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from l2a_ray.errors import ClusterError, SettingError
from l2a_ray.runtime.nodes import check_code, living

logger = logging.getLogger(__name__)
Amounts = Mapping[str, float]
"""Resources by Ray's names: CPU, GPU."""
Phase = Sequence["Demand"]
"""Demands that are there at the same time."""


@dataclass(frozen=True)
class Demand:
    """What a part of a run reserves.

    Args:
        count: number of processes that it runs at once.
        each: what each of them reserves, all of it on one node.
        fields: the settings that say so, and their values, by resource.
        spare: CPUs beside them, for the tasks of Ray Data.
    """

    count: int = 0
    each: Amounts = field(default_factory=dict)
    fields: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    spare: float = 0


def check_cluster(wanted: Sequence[Phase]) -> None:
    """Refuse a Ray on which a run would wait for ever, or whose nodes would not run the same code. Ray is running.

    A cluster may get more nodes, by an autoscaler or by hand (Ray tells nobody which): there, what lacks is logged and
    waited for.

    Raises:
        SettingError: settings ask for more than this machine has, and it is all that there is.
        ClusterError: no node has a CPU for tasks; a node lacks this project or has other code of it.
    """
    alive = living()
    check_code(alive)
    present: list[Amounts] = [node["Resources"] for node in alive]
    for phase in wanted:
        error = shortage(phase, present)
        if error is None:
            continue
        if len(alive) == 1 and os.environ.get("RAY_ADDRESS", "local") == "local":
            raise error
        logger.warning("%s. Waiting until the cluster has more nodes", error)


def shortage(phase: Phase, nodes: Sequence[Amounts]) -> SettingError | ClusterError | None:
    """Return what is wrong with demands on the nodes that the cluster has; None if nothing is."""
    have = f"the cluster has {_describe(nodes)}"
    for demand in phase:
        if (error := _shortage(demand, nodes, have)) is not None:
            return error
    if _fit(phase, nodes):
        return None
    scarce = "GPU" if any(demand.each.get("GPU") for demand in phase) else "CPU"
    name, value = next(demand.fields[scarce] for demand in phase if demand.each.get(scarce))
    asked = " and ".join(_ask(demand) for demand in phase)
    return SettingError(name, value, f"the settings ask for {asked} at the same time; {have}. Lower one of them")


def fits(phase: Phase, nodes: Sequence[Amounts]) -> bool:
    """Return whether all demands find room on nodes at the same time, with the CPUs that are to be free beside them."""
    reserved = sum(demand.count * demand.each.get("CPU", 0) + demand.spare for demand in phase)
    return _fit(phase, nodes) and sum(node.get("CPU", 0) for node in nodes) >= reserved


def copies(phase: Phase, nodes: Sequence[Amounts]) -> int:
    """Return how many times over demands find room at the same time, at most: each for itself, and their CPUs."""
    each = sum(demand.count * demand.each.get("CPU", 0) + demand.spare for demand in phase)
    rooms = [_room(demand.each, nodes) / demand.count for demand in phase if demand.count]
    return int(min([sum(node.get("CPU", 0) for node in nodes) / each, *rooms] if each else rooms))


def _shortage(demand: Demand, nodes: Sequence[Amounts], have: str) -> SettingError | ClusterError | None:
    asked = f"the settings ask for {_ask(demand)} at once"
    for resource, (name, value) in demand.fields.items():
        if _room({resource: demand.each[resource]}, nodes) < demand.count:
            return SettingError(name, value, f"{asked}; {have}. Lower it, or start nodes that have more")
    if _room(demand.each, nodes) < demand.count:
        name, value = demand.fields["GPU"]
        return SettingError(name, value, f"{asked}; {have}, too few with both. Lower it, or start other nodes")
    if sum(node.get("CPU", 0) for node in nodes) - demand.count * demand.each.get("CPU", 0) >= demand.spare:
        return None
    if not demand.count or not demand.each.get("CPU"):
        return ClusterError(f"no CPU is there for the tasks that make clips and samples: {have}. Start worker nodes")
    name, value = demand.fields["CPU"]
    return SettingError(name, value, f"{asked}, and 1 CPU is for the tasks that make samples; {have}. Lower it")


def _fit(phase: Phase, nodes: Sequence[Amounts]) -> bool:
    """Return whether all processes find a node: the greatest first, and on a node with few GPUs if it can do."""
    free = sorted((dict(node) for node in nodes), key=lambda node: node.get("GPU", 0))
    processes = [demand.each for demand in phase for _ in range(demand.count)]
    for each in sorted(processes, key=lambda each: (each.get("GPU", 0), each.get("CPU", 0)), reverse=True):
        node = next((node for node in free if _room(each, [node]) >= 1), None)
        if node is None:
            return False
        node |= {key: node[key] - amount for key, amount in each.items() if amount}
    return True


def _room(each: Amounts, nodes: Sequence[Amounts]) -> float:
    """Return how many processes the nodes can hold at once."""
    wanted = {resource: amount for resource, amount in each.items() if amount}
    if not wanted:
        return float("inf")
    # Ten tenths of a GPU are one, whatever floats say.
    return sum(min(int(node.get(key, 0) / amount + 1e-8) for key, amount in wanted.items()) for node in nodes)


def _ask(demand: Demand) -> str:
    each = " and ".join(f"{amount:g} {resource}" for resource, amount in demand.each.items() if amount)
    return f"{demand.count} x ({each})"


def _describe(nodes: Sequence[Amounts]) -> str:
    """Return the nodes in words, equal ones together."""
    kinds = Counter(tuple((key, node[key]) for key in ("CPU", "GPU") if node.get(key)) for node in nodes)
    described = (
        f"{count} x ({' and '.join(f'{amount:g} {key}' for key, amount in kind) or 'no CPU or GPU'})"
        for kind, count in kinds.items()
    )
    return ", ".join(described) or "no node"
