"""Every cluster file passes Ray's own schema check, and keeps what large clusters need."""

import shlex
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv
from ray.scripts.scripts import start

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "configs" / "clusters"
AWS = ROOT / "cluster.yaml"
RUNTIME_ENV = CLUSTERS / "runtime_env.yaml"
FILES = [AWS, *sorted(path for path in CLUSTERS.glob("*.yaml") if path != RUNTIME_ENV)]
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def load(path: Path = AWS) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Do what `ray up` does to a file before it asks the cloud for anything: fill in defaults, then validate."""
    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def options(command: str) -> dict[str, Any]:
    """Return what `ray start` itself reads from a start command; options that it does not know are an error."""
    words = shlex.split(command.partition("; ")[2])
    assert [words[0], words[1].rpartition("/")[2], words[2]] == ["RAY_AUTH_MODE=disabled", "ray", "start"]
    return start.make_context("ray start", words[3:]).params


def test_there_are_files() -> None:
    assert [path.name for path in FILES] == ["cluster.yaml", "on_premise.yaml"]


@each_file
def test_ray_accepts_it(path: Path) -> None:
    prepared = prepare(load(path))
    assert prepared["head_node_type"] in prepared["available_node_types"] and prepared["idle_timeout_minutes"] > 0


@each_file
def test_ray_refuses_an_unknown_key(path: Path) -> None:
    for place in ("", "auth", "available_node_types"):
        config = load(path)
        section = config.get(place, {}).get("gpu_worker", config.get(place, config)) if place else config
        section["ilde_timeout_minutes"] = 10
        with pytest.raises(jsonschema.ValidationError, match="ilde_timeout_minutes"):
            prepare(config)


def test_ray_refuses_more_least_workers_than_are_allowed() -> None:
    config = load()
    config["available_node_types"]["cpu_worker"]["min_workers"] = config["max_workers"] + 1
    with pytest.raises(ValueError, match="max_workers"):
        prepare(config)


def test_on_aws_the_head_takes_no_tasks_and_workers_start_from_none() -> None:
    prepared = prepare(load())
    types = prepared["available_node_types"]
    head = types.pop(prepared["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert [(name, kind["min_workers"]) for name, kind in types.items()] == [("cpu_worker", 0), ("gpu_worker", 0)]
    assert all(kind["max_workers"] > 0 and kind["resources"]["CPU"] > 0 for kind in types.values())
    assert types["cpu_worker"]["resources"].get("GPU", 0) == 0 < types["gpu_worker"]["resources"]["GPU"]


def test_of_machines_of_ones_own_the_head_takes_no_tasks_and_all_others_can_work() -> None:
    config = load(CLUSTERS / "on_premise.yaml")
    prepared = prepare(config)
    (kind,) = prepared["available_node_types"].values()
    assert (kind["min_workers"], kind["max_workers"]) == (0, len(config["provider"]["worker_ips"]))
    head = options(prepared["head_start_ray_commands"][-1])
    assert (head["num_cpus"], head["num_gpus"]) == (0, 0)


@each_file
def test_every_machine_has_the_locked_environment_and_the_storage(path: Path) -> None:
    prepared = prepare(load(path))
    for kind in ("head", "worker"):
        # prepare_config joins the common setup and the kind's own.
        setup = " && ".join(prepared[f"{kind}_setup_commands"])
        assert "--require-hashes -r ~/l2a-ray/requirements.lock" in setup
        assert "--no-deps -e ~/l2a-ray" in setup
        assert "mountpoint -q /shared" in setup


@each_file
def test_every_machine_starts_as_ray_advises_for_large_clusters(path: Path) -> None:
    prepared = prepare(load(path))
    for kind in ("head", "worker"):
        command = prepared[f"{kind}_start_ray_commands"][-1]
        assert command.startswith("ulimit -n 65536;") and "~/l2a-venv/bin/ray start" in command
        chosen = options(command)
        assert chosen["head"] == (kind == "head") and bool(chosen["address"]) == (kind == "worker")
        assert bool(chosen["autoscaling_config"]) == (kind == "head")
        assert chosen["object_spilling_directory"] and "/tmp" not in chosen["object_spilling_directory"]
        # /dev/shm has half of a machine's memory, here of 32 GiB: a larger store would be written to disk.
        assert (chosen["object_store_memory"] or 0) < 16 * 2**30


def test_start_options_that_ray_does_not_know_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        options("ulimit -n 65536; RAY_AUTH_MODE=disabled ray start --object-spill-directory=/x")


def test_a_job_takes_the_checkout_along_and_installs_nothing() -> None:
    content = yaml.safe_load(RUNTIME_ENV.read_text(encoding="utf-8"))
    environment = RuntimeEnv(**{**content, "working_dir": str(ROOT)})
    assert set(environment) == {"working_dir", "excludes", "env_vars"}
    assert content["working_dir"] == "." and {".git", ".venv", "/runs", "/demo_videos"} <= set(content["excludes"])
