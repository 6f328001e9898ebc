"""Settings of the Ray that a command starts. Imports no Ray."""

from dataclasses import dataclass

from l2a_ray.fields import above, check, setting


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """The Ray that a command starts on its own machine. A cluster that is there already is used as it is."""

    object_store_gib: float = setting(2.0, execution=True)
    """Size of the object store, GiB of shared memory. Ours: data streams through it, so a small one is enough. Ray's
    own default, 30 % of the memory, would be filled with batches that training will not want for minutes."""

    def __post_init__(self) -> None:
        check(self, object_store_gib=above(0))
