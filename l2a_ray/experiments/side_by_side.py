"""Making the cells of a table at the same time: each missing result in a Ray task of its own, as Ray has room.

In tasks and not in threads, because a stage's work relies on what a process has but once: torch's random numbers and
number of threads, the store's locks. A task holds nothing itself, unless its stage says so (``Stage.reserves``): its
trainings, env runners and samples ask Ray for what they need.
"""

import logging
import logging.handlers
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import ray
import ray.data
import torch
from ray.data import ExecutionResources
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from l2a_ray.experiments.attempt import attempt
from l2a_ray.experiments.grid import Cell
from l2a_ray.pipeline.results import Results, make_together
from l2a_ray.pipeline.stage import Stage, definition
from l2a_ray.runtime.cluster import Demand, Phase, copies, fits
from l2a_ray.runtime.nodes import Node, living
from l2a_ray.runtime.session import quieten
from l2a_ray.storage.files import AnyPath, remove_folder
from l2a_ray.storage.run import RunFolder

logger = logging.getLogger(__name__)
OURS = "l2a_ray"
"""Whose messages are brought from the tasks to the command."""
Tell = Callable[[Sequence[Cell], str, int], None]
"""Receives the cells at work, what has happened, and how many results are being made at the same time."""


@dataclass(eq=False)
class Job:
    """A result that is to be there.

    Args:
        stage: whose.
        results: of the first run that needs it.
        cells: all that need it, in the table's order.
    """

    stage: Stage
    results: Results
    cells: list[Cell] = field(default_factory=list)

    @property
    def phase(self) -> Phase:
        """What it asks of Ray while it is at its largest: what its stage names last, and itself."""
        own = self.stage.reserves()
        found = [demand for phase in self.stage.demands()[-1:] for demand in phase]
        found += [Demand(1, own)] if own else []
        return found if any(demand.spare for demand in found) else [*found, Demand(spare=1)]


class _Beside(RunFolder):
    """What a task takes for its run's folder: a place for what need not last. The command alone writes the run's."""

    def note(self, entries: Mapping[str, Any]) -> None:
        """Leave it to the command."""

    settle = note

    def link(self, places: Mapping[str, AnyPath]) -> None:
        """Leave it to the command."""

    def register(self) -> None:
        """Leave it to the command."""


def room_for_two(cells: Sequence[Cell]) -> bool:
    """Return whether it pays to make results at the same time: there is a cluster, or a machine's GPUs are many.

    A machine without GPUs is kept busy by one training, and trainings without workers are the command's own.
    """
    phases = [job.phase for job in _jobs(cells).values() if not job.results.is_complete(job.stage)]
    nodes = living()
    if len(nodes) == 1 and not any(demand.each.get("GPU") for phase in phases for demand in phase):
        return False
    resources = [node["Resources"] for node in nodes]
    workers = all(cell.pipeline.settings.workers.count for cell in cells)
    return workers and all(fits([*phase, *phase], resources) for phase in phases)


def make_side_by_side(
    cells: Sequence[Cell],
    at_once: int | None,
    tell: Tell,
    ended: Callable[[Mapping[Cell, str | None]], None],
) -> None:
    """Make the results of cells, as many at a time as Ray has room for; what a failed one is not needed for goes on.

    Args:
        cells: those whose results are wanted, finished or not.
        at_once: so many at a time, whatever Ray has now; None: as many as there is room for.
        tell: is told of the cells at work whenever one is begun or has ended.
        ended: is told of cells as they end: None, or why they failed.
    """
    jobs = _jobs(cells)
    reads = {name: {*map(definition, job.stage.reads().values())} & jobs.keys() for name, job in jobs.items()}
    order = TopologicalSorter(reads)
    order.prepare()
    wanted = {cell: definition(cell.result) for cell in cells}
    ready, begun, left = set[str](), set[Cell](), dict.fromkeys(cells)
    for cell in cells:
        cell.pipeline.results.run.register()

    def end(some: Sequence[Cell], cause: str | None) -> None:
        for cell in some:
            left.pop(cell, None)
        if cause is None:
            make_together([(cell.pipeline.results, [cell.result]) for cell in some])  # the runs know it
        ended(dict.fromkeys(some, cause))

    def finish(name: str) -> None:
        order.done(name)
        if finished := [cell for cell in jobs[name].cells if wanted[cell] == name]:
            end(finished, None)

    with _messages() as messages:
        tasks = _Tasks(messages, at_once)
        try:
            while True:
                ready |= set(order.get_ready())
                if there := [name for name in ready if jobs[name].results.is_complete(jobs[name].stage)]:
                    ready -= {*there}
                    for name in there:
                        finish(name)
                    continue
                full: list[Phase] = []
                for name in (name for name in jobs if name in ready):  # in the table's order
                    if jobs[name].phase in full:
                        continue
                    if not tasks.room(jobs[name]):
                        full.append(jobs[name].phase)
                    else:
                        ready.remove(name)
                        tasks.start(name, jobs[name], shared=len(jobs[name].cells) >= len(left))
                        if (cell := jobs[name].cells[0]) not in begun:
                            begun.add(cell)
                            tell(tasks.cells, f"begun: {cell.title}", len(tasks.running))
                if not tasks.running:
                    return
                name, cause = tasks.wait()
                if cause is None:
                    finish(name)
                else:
                    end([cell for cell in jobs[name].cells if cell in left], cause)
                if tasks.running and wanted[jobs[name].cells[0]] == name:
                    tell(tasks.cells, f"ended: {jobs[name].cells[0].title}", len(tasks.running))
        finally:
            tasks.stop()


def _jobs(cells: Sequence[Cell]) -> dict[str, Job]:
    """Return what is missing of cells, and their own results, by their definitions, each after those that it reads."""
    found: dict[str, Job] = {}
    for cell in cells:
        needed = cell.pipeline.results.needed([cell.result]) or [cell.result]
        for name, stage in {definition(stage): stage for stage in needed}.items():
            found.setdefault(name, Job(stage, cell.pipeline.results)).cells.append(cell)
    return found


@dataclass
class _Tasks:
    """Ray tasks that make results.

    Args:
        messages: takes what they log.
        at_once: as of :func:`make_side_by_side`.
    """

    messages: Queue
    at_once: int | None
    running: dict[str, Job] = field(default_factory=dict)
    _refs: "dict[ray.ObjectRef[Any], str]" = field(default_factory=dict)
    _places: dict[str, str] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """The cells at work: of several that wait for the same result, the first."""
        return list(dict.fromkeys(job.cells[0] for job in self.running.values()))

    def room(self, job: Job) -> bool:
        """Return whether a job may start: where none runs, always; Ray waits for nodes that it does not have."""
        if self.at_once is not None:
            return len(self.running) < self.at_once
        wanted = [demand for one in (*self.running.values(), job) for demand in one.phase]
        return not self.running or fits(wanted, [node["Resources"] for node in living()])

    def start(self, name: str, job: Job, shared: bool) -> None:
        """Begin a job.

        Args:
            name: of the job.
            job: whose stage's own inputs are complete.
            shared: whether all that is left waits for it, so that it may have the whole cluster.
        """
        run = job.results.run
        run.note({job.stage.title: job.results.entry(job.stage)})
        beside = _Beside(run.path / f".scratch-{job.results.key(job.stage)}", run.settings, run.store)
        own, nodes = job.stage.reserves(), living()
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": own.get("GPU", 0)}
        if not own:  # anywhere, but for a head that is kept free
            load = Counter(self._places.values())
            free = [node for node in nodes if node["Resources"].get("CPU")] or nodes
            place = min((str(node["NodeID"]) for node in free), key=load.__getitem__)
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place, soft=True)
            self._places[name] = place
        results = Results(beside, job.results.runtime)
        cpus = None if shared else self._share(job.phase, nodes)
        task = ray.remote(_work).options(**options)
        ref = task.remote(results, job.stage, torch.get_num_threads(), str(Path.cwd()), cpus, self.messages)
        self._refs[ref], self.running[name] = name, job

    def _share(self, phase: Phase, nodes: Sequence[Node]) -> float:
        """Return how many CPUs the tasks of a job's Ray Data may take, so that as many such jobs as fit find theirs.

        Ray Data takes what is free, and would take it again before a training that has waited for it.
        """
        resources = [node["Resources"] for node in nodes]
        most = self.at_once or max(1, copies(phase, resources))
        reserved = sum(demand.count * demand.each.get("CPU", 0) for demand in phase)
        total = sum(node.get("CPU", 0) for node in resources)
        return max(1.0, float((total - most * reserved) // most))

    def wait(self) -> tuple[str, str | None]:
        """Return the name of a job that has ended, and why it failed, if it did."""
        (ref,), _ = ray.wait(list(self._refs), num_returns=1)
        name = self._refs.pop(ref)
        self._places.pop(name, None)
        job = self.running.pop(name)
        try:
            cause = ray.get(ref)
        except ray.exceptions.RayError as error:
            cause = f"the process that made {job.stage.title} died: {error}"
        remove_folder(job.results.run.path / f".scratch-{job.results.key(job.stage)}")
        return name, cause

    def stop(self) -> None:
        """End what is running, if anything is: nobody waits for it any more."""
        for ref in self._refs:
            with suppress(ray.exceptions.RayError):
                ray.cancel(ref, force=True)


def _work(results: Results, stage: Stage, threads: int, folder: str, cpus: float | None, messages: Queue) -> str | None:
    """Make a result in a Ray task; return why it failed, if it did.

    Args:
        results: know the store; their run is a ``_Beside``.
        stage: whose inputs are complete.
        threads: torch's in the command's process: last bits depend on their number.
        folder: the command's working folder, where relative names begin.
        cpus: how many the tasks of Ray Data may take; None: all.
        messages: takes what is logged.
    """
    if Path(folder).is_dir():
        os.chdir(folder)
    torch.set_num_threads(threads)
    quieten()
    limits = ExecutionResources.for_limits(cpu=cpus)
    ray.data.DataContext.get_current().execution_options.resource_limits = limits
    handler, ours = logging.handlers.QueueHandler(messages), logging.getLogger(OURS)
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    try:
        return attempt([(results, [stage])])
    finally:
        ours.removeHandler(handler)  # the process may serve other jobs


class _Relay(logging.Handler):
    """Hands what a task logged to the command's own loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on one message."""
        logging.getLogger(record.name).handle(record)


@contextmanager
def _messages() -> Iterator[Queue]:
    """Bring what tasks log to the command: a session shows nothing that Ray's processes print."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    listener = logging.handlers.QueueListener(queue, _Relay())
    listener.start()
    try:
        yield queue
    finally:
        with suppress(ray.exceptions.RayError):  # of a cluster that is gone: what the command ends with matters more
            listener.stop()
            queue.shutdown()
