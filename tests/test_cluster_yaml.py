"""cluster.yaml passes Ray's own schema check, and keeps what large clusters need."""

from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[1] / "cluster.yaml"


def load() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))
    return config


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Do what `ray up` does to a file before it asks the cloud for anything: fill in defaults, then validate."""
    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_ray_accepts_it() -> None:
    assert set(prepare(load())["available_node_types"]) == {"head", "cpu_worker", "gpu_worker"}


@pytest.mark.parametrize("place", [(), ("available_node_types", "gpu_worker"), ("auth",)])
def test_ray_refuses_an_unknown_key(place: tuple[str, ...]) -> None:
    config = load()
    section = config
    for key in place:
        section = section[key]
    section["ilde_timeout_minutes"] = 10
    with pytest.raises(jsonschema.ValidationError, match="ilde_timeout_minutes"):
        prepare(config)


def test_ray_refuses_more_least_workers_than_are_allowed() -> None:
    config = load()
    config["available_node_types"]["cpu_worker"]["min_workers"] = config["max_workers"] + 1
    with pytest.raises(ValueError, match="max_workers"):
        prepare(config)


def test_the_head_takes_no_tasks_and_workers_start_from_none() -> None:
    prepared = prepare(load())
    types = prepared["available_node_types"]
    head = types.pop(prepared["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert [kind["min_workers"] for kind in types.values()] == [0, 0]
    assert types["cpu_worker"]["resources"].get("GPU", 0) == 0 < types["gpu_worker"]["resources"]["GPU"]
    assert prepared["idle_timeout_minutes"] > 0


def test_every_machine_starts_the_locked_environment_with_enough_open_files() -> None:
    prepared = prepare(load())
    for kind in ("head", "worker"):
        # prepare_config joins the common setup and the kind's own.
        setup = " && ".join(prepared[f"{kind}_setup_commands"])
        assert "--require-hashes -r ~/l2a-ray/requirements.lock" in setup
        assert "--no-deps -e ~/l2a-ray" in setup
        start = prepared[f"{kind}_start_ray_commands"][-1]
        assert start.startswith("ulimit -n 65536;") and "~/l2a-venv/bin/ray start" in start
