"""A stage of work: what it reads, what its result depends on, and the key that follows from both.

A stage is a frozen dataclass. Fields that hold other stages, or a tuple of them, are what it reads; all other fields
are what its result depends on, unless they are declared otherwise (:func:`l2a_ray.fields.setting`). So a stage cannot
depend on a setting that is not in its key.
"""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from l2a_ray.fields import plain, relevant
from l2a_ray.storage.files import AnyPath
from l2a_ray.storage.lock import Hold

if TYPE_CHECKING:
    from l2a_ray.planning.counts import Counts
    from l2a_ray.runtime.cluster import Phase


class Inputs(Protocol):
    """What a stage's work may ask for."""

    @property
    def store(self) -> AnyPath:
        """The folder that all runs share."""

    @property
    def scratch(self) -> AnyPath:
        """A folder of the run for what need not last."""

    def folder(self, stage: "Stage") -> AnyPath:
        """Return the folder of a complete result."""

    def need_ray(self) -> None:
        """Start or join Ray, unless that is done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage(ABC):
    """One result of a run, as the classifier of one arm and seed."""

    name: ClassVar[str]
    """Of all stages of this class, and of their folder in the store."""
    version: ClassVar[int] = 1
    """Raised when the same settings give another result than before, a default that changes included."""

    @property
    def title(self) -> str:
        """What distinguishes it within a run, as "train/selected-0"."""
        return self.name

    def reads(self) -> dict[str, "Stage"]:
        """Return the stages whose results it reads, by field; those of a tuple by field and title."""
        found: dict[str, Stage] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Stage):
                found[field.name] = value
            elif _is_several(value):
                found |= {f"{field.name}.{stage.title}": stage for stage in value}
        return found

    def uses(self) -> dict[str, Any]:
        """Return, by dotted name, the settings that are not at their default and that the result depends on."""
        return dict(self._uses)

    @cached_property
    def _uses(self) -> dict[str, Any]:
        return relevant(self, without=lambda value: isinstance(value, Stage) or _is_several(value))

    def settings(self) -> dict[str, Any]:
        """Return all that it is told, by dotted name, for those who want to know how a result was made."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        told = {
            name: value for name, value in values.items() if not isinstance(value, Stage) and not _is_several(value)
        }
        return flatten(dict(plain(told)))

    def key(self, reads: Mapping[str, str]) -> str:
        """Return the name of its result, given the identities of what it reads."""
        about = {"stage": self.name, "version": self.version, "uses": self.uses(), "reads": dict(reads)}
        return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()

    def keeps(self) -> Sequence[str]:
        """Return other folders of the store, as "clips/<key>", that its result stands on."""
        return ()

    def demands(self) -> "Sequence[Phase]":
        """Return what it asks of a Ray cluster."""
        return ()

    def reserves(self) -> Mapping[str, float]:
        """Return what its own process reserves of a cluster on which several stages work at the same time."""
        return {}

    def size(self, counts: "Counts") -> float:
        """Return what its cost grows with, in a unit of its own, on a data set of that size; by default nothing."""
        return 1.0

    @abstractmethod
    def work(self, inputs: Inputs, out: AnyPath) -> None:
        """Fill ``out``. Called again after an interruption, it does what is missing there."""

    @classmethod
    def work_all(cls, jobs: "Sequence[Job]", inputs: Inputs) -> None:
        """Do the work of several stages of this class; those that gain by it do it together."""
        for job in jobs:
            job.stage.work(inputs, job.folder)

    @classmethod
    def works_together(cls) -> bool:
        """Return whether several stages of this class gain by working together."""
        return getattr(cls.work_all, "__func__", None) is not getattr(Stage.work_all, "__func__", None)

    def content(self, folder: AnyPath) -> str | None:
        """Return a digest of a complete result, if it, and not the key, is what later stages depend on."""
        return None


def definition(stage: Stage) -> str:
    """Return a digest of what a stage is told and all that it reads; stages that share it have the same result."""
    return stage.key({name: definition(read) for name, read in stage.reads().items()})


def _is_several(value: object) -> bool:
    """Return whether a value is a tuple of stages."""
    return isinstance(value, tuple) and bool(value) and all(isinstance(item, Stage) for item in value)


@dataclass(frozen=True)
class Job:
    """A stage whose result this process is making: where, and the lock that it holds on the folder."""

    stage: Stage
    folder: AnyPath
    lock: Hold


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
