"""A cluster that cannot do what the settings ask for is refused at once; so are nodes with other code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from l2a_ray.classifier.settings import WorkerSettings
from l2a_ray.config.settings import Settings
from l2a_ray.errors import SettingError
from l2a_ray.pipeline import demands
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.results import closure
from l2a_ray.prepare.segment.settings import SegmentSettings
from l2a_ray.runtime.cluster import Amounts, Phase, check_cluster, copies, fits, shortage
from l2a_ray.runtime.session import ray_session
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.storage.provenance import code_digest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")
ROOT = Path(__file__).parents[1]
CPUS, GPUS = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}


def wanted(*stages: str, **sections: Any) -> list[Phase]:
    """Return what some stages of a run ask for, all of them by default."""
    run = closure(Pipeline(Settings(name="a", **sections)).all("evaluate"))
    return [phase for stage in run if not stages or stage.name in stages for phase in stage.demands()]


def train(workers: int, cpus: float, gpus: float) -> list[Phase]:
    return [*demands.train(WorkerSettings(count=workers, cpus=cpus, gpus=gpus))]


def found(wanted: list[Phase], nodes: list[Amounts]) -> list[str]:
    """Return what is said of demands on these nodes."""
    return [str(error) for phase in wanted if (error := shortage(phase, nodes)) is not None]


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "present"),
    [
        (1, 1, 0, [{"CPU": 2}]),
        (2, 4, 0, [CPUS, {"CPU": 1}]),  # both on one node, the samples on the other
        (4, 1, 1, [GPUS, GPUS]),
        (4, 1, 0.5, [GPUS]),
        (8, 0, 0.1, [{"CPU": 1, "GPU": 0.8}]),  # 0.8 / 0.1 is less than 8 in floats
        (0, 1, 1, [{"CPU": 1}]),  # in the driver: nothing is reserved
    ],
)
def test_what_is_there_is_enough(workers: int, cpus: float, gpus: float, present: list[Amounts]) -> None:
    assert found(train(workers, cpus, gpus), present) == []


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "present", "said"),
    [
        (
            1,
            1,
            1,
            [CPUS, CPUS],
            r"workers\.gpus=1: .* 1 x \(1 CPU and 1 GPU\).* has 2 x \(8 CPU\)\. Lower",
        ),
        (2, 1, 1.5, [{"CPU": 8, "GPU": 3}], ""),
        (4, 1, 1.5, [{"CPU": 8, "GPU": 2}] * 3, r"workers\.gpus=1\.5: .*4 x .* 3 x \(8 CPU and 2 GPU\)"),
        (2, 6, 0, [CPUS], r"workers\.cpus=6: "),
        (1, 9, 0, [CPUS, CPUS], r"workers\.cpus=9: "),  # a worker is on one node
        (2, 4, 0, [CPUS], r"workers\.cpus=4: .* and 1 CPU is for the tasks that make samples"),
        (1, 4, 1, [{"CPU": 8}, {"CPU": 1, "GPU": 1}], r"workers\.gpus=1: .* too few with both"),
        (1, 0, 0, [{"GPU": 1}], r"no CPU is there .* has 1 x \(1 GPU\)"),
        (1, 0, 0, [{}], r"no CPU is there .* has 1 x \(no CPU or GPU\)"),
    ],
)
def test_what_lacks_is_named(workers: int, cpus: float, gpus: float, present: list[Amounts], said: str) -> None:
    errors = found(train(workers, cpus, gpus)[1:], present)
    if not said:
        assert errors == []
        return
    assert len(errors) == 1
    assert re.search(said, errors[0]), errors[0]


def test_each_part_of_a_run_asks_for_its_own() -> None:
    whole = {
        "segment": SegmentSettings(gpus_per_worker=0.5),
        "selector": SelectorSettings(env_runners=3, gpus_per_env_runner=0.25),
    }
    present: list[Amounts] = [{"CPU": 8}]
    assert found(wanted("train", **whole), present) == []
    assert found(wanted("prepare", **whole), present)[0].startswith("segment.gpus_per_worker=0.5")
    assert found(wanted("train-selector", **whole), present)[0].startswith("selector.gpus_per_env_runner=0.25")
    assert len(found(wanted(**whole), present)) == 2
    assert found(wanted(**whole), [{"CPU": 3, "GPU": 1}]) == [], "not at the same time"
    assert found(wanted(**whole), [{"CPU": 2, "GPU": 1}])[0].startswith("selector.env_runners=3")
    without = found(wanted(arms=["real", "random"], **whole), present)
    assert len(without) == 1 and without[0].startswith("segment"), "no arm needs a Selector"


@pytest.mark.parametrize(
    ("runner_gpus", "learner_gpus", "present", "said"),
    [
        (0, 0, [{"CPU": 4}], ""),
        (0, 0, [{"CPU": 3}], "env_runners=3: the settings ask for 3 x (1 CPU) and 1 x (1 CPU) at the same time; the"),
        (
            0.25,
            1,
            [{"CPU": 3, "GPU": 1}],
            "gpus_per_env_runner=0.25: the settings ask for 3 x (1 CPU and 0.25 GPU) and",
        ),
        (0.25, 0.25, [{"CPU": 3, "GPU": 1}], ""),
        (0, 1, [{"CPU": 1, "GPU": 1}, {"CPU": 2}], ""),
        (0.5, 1, [{"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}], "and 1 x (1 GPU) at the same time"),  # 3 halves and 1
    ],
)
def test_what_fits_alone_must_fit_together(
    runner_gpus: float, learner_gpus: float, present: list[Amounts], said: str
) -> None:
    part = SelectorSettings(env_runners=3, gpus_per_env_runner=runner_gpus, learners=1, gpus_per_learner=learner_gpus)
    errors = found([*demands.selector(part)], present)
    assert len(errors) == bool(said) and all(said in error for error in errors), errors


def test_as_many_trainings_fit_side_by_side_as_have_a_node_and_a_cpu_for_samples() -> None:
    alone, gpu = (demands.train(WorkerSettings(gpus=gpus))[-1] for gpus in (0, 1))
    four: list[Amounts] = [{"CPU": 2, "GPU": 1}] * 4
    assert fits([*gpu] * 4, four) and not fits([*gpu] * 5, four)
    assert not fits([*gpu] * 2, [{"CPU": 16, "GPU": 1}]) and not fits(gpu, [{"CPU": 1, "GPU": 1}])
    assert copies(gpu, four) == 4 and copies(gpu, [{"CPU": 16, "GPU": 1}, {"CPU": 64}]) == 1 and copies(gpu, []) == 0
    assert copies(alone, [{"CPU": 9}]) == 4
    assert fits([*alone] * 2, [{"CPU": 4}]) and not fits([*alone] * 2, [{"CPU": 3}])


@pytest.mark.ray
def test_a_ray_that_cannot_grow_is_refused(session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_session(train(1, 1, 0)):
        pass
    with (
        pytest.raises(SettingError, match=r"workers\.gpus=1: .* has 1 x \(2 CPU\)"),
        ray_session(train(1, 1, 1)),
    ):
        pass
    with pytest.raises(SettingError, match=r"workers\.cpus=2: "):
        check_cluster(train(1, 2, 0))


@pytest.mark.ray
def test_a_cluster_that_may_grow_is_waited_for_and_a_warning_says_what_it_lacks(
    session: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_cluster(train(1, 1, 0))
    assert not caplog.text
    check_cluster(train(1, 1, 1))
    assert re.search(r"workers\.gpus=1: .* has 1 x \(2 CPU\).* Waiting until", caplog.text)


SEVERAL = """
import sys
from ray.cluster_utils import Cluster
from l2a_ray.errors import ClusterError
from l2a_ray.runtime.session import ray_session
import ray

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
try:
    with ray_session():
        print("alike")
    for place in sys.argv[1:]:
        node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": place})
        cluster.wait_for_nodes()
        try:
            with ray_session():
                print("nothing was said")
        except ClusterError as error:
            print(error)
        cluster.remove_node(node)
finally:
    ray.shutdown()
    cluster.shutdown()
"""
WITHOUT = """
import sys
from pathlib import Path
sys.path[:] = [place for place in sys.path if not (Path(place) / "l2a_ray").is_dir()]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""


@pytest.mark.slow
def test_nodes_with_other_code_are_named(tmp_path: Path) -> None:
    changed, without = tmp_path / "changed", tmp_path / "without"
    for name in ("l2a_ray", "envs"):
        shutil.copytree(ROOT / name, changed / name)
    (changed / "l2a_ray" / "names.py").write_text("# edited on one machine\n")
    without.mkdir()
    (without / "sitecustomize.py").write_text(WITHOUT)
    # The driver's working directory and script folder come before all else on the workers' path: neither has the code.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", SEVERAL, str(changed), str(without)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    alike, other, lacking = done.stdout.splitlines()[-3:]
    here = code_digest()
    assert alike == "alike"
    assert re.search(
        rf"node [\d.]+ \(.+\) has l2a-ray .+, code \w+ in {changed}; the driver .* {here} in {ROOT}\.", other
    )
    said = r"has not all of this project's code \(No module named 'l2a_ray'\); the driver .*`ray up`.*docs/cluster\.md"
    assert re.search(rf"node [\d.]+ \(.+\) {said}", lacking)
