"""The results of all runs: ``<store>/<stage>/<key>/``, found again by their keys and made where they are missing.

Beside a result lies ``stage.json``: what it was made with, by which code, where and when and, last of all, that it is
complete. (That the folder is there cannot mean it: object stores cannot rename one that is filled elsewhere.)
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

from l2a_ray.errors import StageError
from l2a_ray.pipeline.stage import Job, Stage
from l2a_ray.runtime.settings import RuntimeSettings
from l2a_ray.storage.files import AnyPath, read_bytes, write_json
from l2a_ray.storage.lock import hold
from l2a_ray.storage.provenance import provenance
from l2a_ray.storage.run import RunFolder, StageEntry

logger = logging.getLogger(__name__)
RECORD = "stage.json"
FORMAT = 1
"""Of the store; raised when results of an older one cannot be read any more."""
Record = dict[str, Any]


@dataclass
class Results:
    """Reads and makes results.

    Args:
        run: the run's folder, which records what the run is made of; it knows the store.
        runtime: how Ray is started, where a stage needs it.
    """

    run: RunFolder
    runtime: RuntimeSettings
    _records: dict[AnyPath, Record] = field(default_factory=dict)
    _keys: dict[Stage, str] = field(default_factory=dict)
    _begin_session: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        about = self.store / "store.json"
        try:
            found = json.loads(read_bytes(about)).get("format")
        except FileNotFoundError:
            return
        except (ValueError, AttributeError) as error:
            raise StageError(f"{about}: damaged ({error}). Restore it, or name another --store") from error
        if found != FORMAT:
            raise StageError(
                f"{self.store}: its results are of format {found}, this program reads {FORMAT}. Nothing was changed: "
                "use the release that made them, or name another --store"
            )

    @property
    def store(self) -> AnyPath:
        """The folder that all runs share."""
        return self.run.store

    # What is there

    def identity(self, stage: Stage) -> str | None:
        """Return what later stages depend on: the stage's key, or its content; None while that is not known."""
        key = self.key(stage)
        if key is None or type(stage).content is Stage.content:
            return key
        return (self._record(stage) or {}).get("content")

    def key(self, stage: Stage) -> str | None:
        """Return a stage's key; None while it is not known, because the content of what it reads is not."""
        if stage not in self._keys:
            reads = {name: self.identity(read) for name, read in stage.reads().items()}
            known = {name: identity for name, identity in reads.items() if identity is not None}
            if len(known) < len(reads):
                return None
            self._keys[stage] = stage.key(known)
        return self._keys[stage]

    def is_complete(self, stage: Stage) -> bool:
        """Return whether a stage's result is there, all of it."""
        return bool((self._record(stage) or {}).get("complete"))

    def folder(self, stage: Stage) -> AnyPath:
        """Return the folder of a complete result.

        Raises:
            StageError: it is not there.
        """
        if not self.is_complete(stage):
            raise StageError(f"{stage.title} is not there with these settings. `l2a run` with them makes all stages")
        return self._place(stage)

    def records(self, targets: Sequence[Stage]) -> Iterator[tuple[Stage, Record]]:
        """Yield the records of complete results and of all that they are made of."""
        for stage in closure(targets):
            record = self._record(stage)
            if record is not None and record.get("complete"):
                yield stage, record

    def _place(self, stage: Stage) -> AnyPath:
        return self.store / stage.name / str(self.key(stage))

    def _record(self, stage: Stage) -> Record | None:
        return None if self.key(stage) is None else self._read(self._place(stage))

    def _read(self, folder: AnyPath) -> Record | None:
        """Read a record; complete ones do not change any more and are read once."""
        if folder in self._records:
            return self._records[folder]
        path = folder / RECORD
        try:
            record: Record = json.loads(read_bytes(path))
            wrong = [name for name, size in record.get("files", {}).items() if _size(folder / name) != size]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, AttributeError) as error:
            raise StageError(f"{path}: damaged ({error}). Delete {folder} and run the same command again") from error
        if wrong:
            advice = "Delete this folder, and the same command makes it again"
            raise StageError(f"{folder}: {wrong[0]} is missing or not as it was written. {advice}")
        if record.get("complete"):
            self._records[folder] = record
        return record

    # Making what is missing

    def make(self, targets: Sequence[Stage]) -> None:
        """Make the results of some stages, and of all that these need.

        Raises:
            L2AError: as the stages' work.
        """
        make_together([(self, targets)])

    def make_again(self, stage: Stage) -> None:
        """Do the work of a stage whether or not it is complete; later stages depend on its new content."""
        self.make(list(stage.reads().values()))
        with self._working([stage]):
            self._make([stage], {stage: self.run}, again=True)

    def needed(self, targets: Sequence[Stage]) -> list[Stage]:
        """Return the stages whose work is to be done, each after those that it reads."""
        found: list[Stage] = []

        def visit(stage: Stage) -> None:
            if stage in found or self.is_complete(stage):
                return
            for read in stage.reads().values():
                visit(read)
            found.append(stage)

        for target in targets:
            visit(target)
        return found

    @property
    def scratch(self) -> AnyPath:
        """A folder of the run for what need not last."""
        return self.run.path / ".scratch"

    def need_ray(self) -> None:
        """Start or join Ray, unless that is done, for as long as results are being made."""
        assert self._begin_session is not None, "only a stage's work needs Ray"
        self._begin_session()

    @contextmanager
    def _working(self, needed: Sequence[Stage]) -> Iterator[None]:
        """Prepare the store for work, and end the Ray session, if one was begun, after it."""
        if not needed or self._begin_session is not None:
            yield
            return
        write_json(self.store / "store.json", {"format": FORMAT})
        with ExitStack() as stack:

            def begin() -> None:
                from l2a_ray.runtime.session import ray_session

                wanted = [phase for stage in needed for phase in stage.demands()]
                stack.enter_context(ray_session(wanted, self.runtime))

            self._begin_session = cache(begin)
            try:
                yield
            finally:
                self._begin_session = None

    def _make(self, stages: Sequence[Stage], runs: Mapping[Stage, RunFolder], again: bool = False) -> None:
        """Do the work of stages of one class, of these runs; where another process is at it, wait for its result."""
        with ExitStack() as held:
            jobs = []
            # One stage a key, for arms may differ in nothing; and one order, or two processes may wait in a ring.
            for _, stage in sorted({str(self.key(stage)): stage for stage in stages}.items()):
                folder = self._place(stage)
                jobs.append(Job(stage, folder, held.enter_context(hold(folder, wait=partial(_tell_waiting, stage)))))
            jobs = [job for job in jobs if again or not self.is_complete(job.stage)]
            if not jobs:
                return
            since = time.perf_counter()
            begun = {job.stage: self._begin(job, again) for job in jobs}
            for job in jobs:
                runs[job.stage].note({job.stage.title: self.entry(job.stage)})
            type(jobs[0].stage).work_all(jobs, self)
            taken = {"seconds": round(time.perf_counter() - since, 3), "together": len(jobs)}
            for job in jobs:
                job.lock.check()  # whoever has lost the folder must not call its content complete
                done = {"complete": True, "content": job.stage.content(job.folder), "files": _sizes(job.folder)}
                write_json(job.folder / RECORD, begun[job.stage] | taken | done)
                self._records.pop(job.folder, None)
            self._keys.clear()  # of what depends on the content of these

    def _settle(self, targets: Sequence[Stage]) -> None:
        """Record that the run is made of these results and of all that they need."""
        made = closure(targets)
        self.run.settle({stage.title: self.entry(stage) for stage in made})
        self.run.link({stage.title: self._place(stage) for stage in made if self.is_complete(stage)})

    def _begin(self, job: Job, again: bool) -> Record:
        """Write that work on a result has begun, or goes on, and by what; return that."""
        before = {} if again else self._read(job.folder) or {}
        made_by, now = before.get("made_by", []), provenance(getattr(job.stage, "seed", None))
        if made_by and made_by[-1] != now:
            differs = [name for name in now if now[name] != made_by[-1].get(name)]
            logger.warning("%s: goes on with other %s than it was begun with", job.stage.title, ", ".join(differs))
        record = self._describe(job.stage) | {"made_by": made_by if made_by[-1:] == [now] else [*made_by, now]}
        record |= {"started": datetime.now(UTC).isoformat(timespec="seconds"), "complete": False}
        if not self.is_complete(job.stage):  # what is looked at again is complete until that has succeeded
            write_json(job.folder / RECORD, record)
        return record

    def _describe(self, stage: Stage) -> Record:
        """Return what a result is made with, and by what."""
        reads = {name: [read.name, self.identity(read)] for name, read in stage.reads().items()}
        about = {"stage": stage.name, "version": stage.version, "title": stage.title, "key": self.key(stage)}
        return about | {
            "uses": stage.uses(),
            "reads": reads,
            "settings": stage.settings(),
            "keeps": list(stage.keeps()),
        }

    def entry(self, stage: Stage) -> StageEntry:
        """Return what a run knows of a result."""
        return self._describe(stage) | {"content": (self._record(stage) or {}).get("content")}

    # Messages

    def _announce(self, targets: Sequence[Stage], needed: Sequence[Stage]) -> None:
        """Say what is there, and what is to be made and why, before any work."""
        for stage in targets:
            if stage not in needed:
                logger.info("%s: complete, nothing to do", stage.title)
        before = self.run.stages()
        for stage in needed:
            if stage.title in before and (reasons := self._reasons(stage, before[stage.title])):
                logger.info("%s: to be made anew: %s", stage.title, "; ".join(reasons))

    def _reasons(self, stage: Stage, before: StageEntry) -> list[str]:
        """Say what differs from the result that this run had before."""
        uses, settings = stage.uses(), stage.settings()
        reasons = []
        for name in sorted(uses.keys() | before["uses"].keys()):
            if uses.get(name) != before["uses"].get(name):
                old, new = before["settings"].get(name), settings.get(name)
                reasons.append(f"{name} {new} has other content" if old == new else f"{name} {old} -> {new}")
        if stage.version != before["version"]:
            reasons.append(f"version {before['version']} -> {stage.version} of the stage")
        now = {name: self.identity(read) for name, read in stage.reads().items()}
        read_before = {name: identity for name, (_, identity) in before["reads"].items()}
        return reasons + [
            f"{stage.reads()[name].title} is another"
            for name in now
            if now[name] and read_before.get(name) != now[name]
        ]


def make_together(wanted: Sequence[tuple[Results, Sequence[Stage]]]) -> None:
    """Make results of several runs of one store as those of one run: stages of a class work together.

    So the runs must agree in what such stages share: the clips, the machines that train, how classifiers are tested.

    Args:
        wanted: of each run its results, and the stages whose results are to be made.

    Raises:
        L2AError: as the stages' work.
    """
    first, targets = wanted[0][0], [stage for _, own in wanted for stage in own]
    runs = {stage: results.run for results, own in wanted for stage in closure(own)}
    for results, own in wanted:
        results._announce(own, results.needed(own))
        results.run.register()  # though nothing may be needed: another run can have made it all
    needed = first.needed(targets)
    with first._working(needed):
        # One class after the other; what comes after may be complete once the content of what it reads is known.
        while needed:
            first._make(_next(needed), runs)
            needed = first.needed(targets)
    for results, own in wanted:
        results._settle(own)


def closure(targets: Sequence[Stage]) -> list[Stage]:
    """Return some stages and all that they read, each after those that it reads."""
    found: list[Stage] = []

    def visit(stage: Stage) -> None:
        if stage not in found:
            for read in stage.reads().values():
                visit(read)
            found.append(stage)

    for target in targets:
        visit(target)
    return found


def _next(needed: Sequence[Stage]) -> list[Stage]:
    """Return stages of one class that wait for nothing that is needed: as many as can be, or one if that is as fast.

    A class whose other stages would be ready soon is left for later. What is made alone is complete though the next one
    may fail.
    """
    there = {*needed}
    ahead = {stage: there.intersection(closure([stage])) - {stage} for stage in needed}
    ready = [stage for stage in needed if not ahead[stage]]

    def waits(stage: Stage) -> bool:
        """Return whether it waits for others than its own kind, as it does where pseudo-labels come in rounds."""
        return bool(ahead[stage]) and all(type(one) is not type(stage) for one in ahead[stage])

    late = {type(stage) for stage in needed if waits(stage)}
    # Where each class waits for one that waits for it, what is made of the fewest lags behind the most.
    behind = min(ready, key=lambda stage: len(closure([stage])))
    first = next((type(stage) for stage in ready if type(stage) not in late), type(behind))
    stages = [stage for stage in ready if type(stage) is first]
    return stages if first.works_together() else stages[:1]


def _tell_waiting(stage: Stage, who: str) -> None:
    logger.info("%s: %s", stage.title, who)


def _size(path: AnyPath) -> int | None:
    try:
        return int(path.stat().st_size)
    except FileNotFoundError:
        return None


def _sizes(folder: AnyPath) -> dict[str, int]:
    """Return the sizes of the files right in a folder, in bytes, by which a damaged result is noticed."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: path.stat().st_size for path in files if path.name != RECORD}
