"""The parts that need no Ray run where Ray is not installed."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from importlib.abc import MetaPathFinder


class NoRay(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, NoRay())
try:
    import ray
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the blocker does not block")

from pathlib import Path

import gymnasium
import numpy as np
import torch

import envs.settings
import l2a_ray.classifier.features
import l2a_ray.classifier.methods
import l2a_ray.classifier.zoo
import l2a_ray.classifier.step
import l2a_ray.prepare.store
import l2a_ray.composites.composite
import l2a_ray.fewshot.backgrounds
import l2a_ray.fewshot.training
import l2a_ray.prepare.inpaint.fill
import l2a_ray.pairs.match
import l2a_ray.pairs.names
import l2a_ray.composites.schedule
import l2a_ray.prepare.segment
import l2a_ray.selector.file
import l2a_ray.selector.network
import l2a_ray.selector.scoring
from helpers import small_network, small_problem
from l2a_ray.classifier.settings import ClassifierSettings

torch.set_num_threads(1)
problem = small_problem(Path(sys.argv[1]))
for tune in ("head", "all"):
    env = problem.env(envs.settings.EnvSettings(pairs=4, steps=2, tune=tune, learning_rate=0.1))
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array([1, 1, 1, 0], dtype=np.int8))
    assert info["num_selected"] == 3 and np.isfinite(reward) and reward != 0

clip = problem.store.read(problem.validation[0])
fill = l2a_ray.prepare.inpaint.fill
background = fill.inpaint(clip.frames_THWC, clip.planes.people, fill.InpaintSettings())
made = l2a_ray.composites.composite.composite(clip.frames_THWC[None], clip.planes.objects[None], background[None])
assert (made[0] == np.where(clip.planes.objects[..., None], clip.frames_THWC, background)).all()

network = small_network()
optimizer = l2a_ray.classifier.step.make_optimizer(network, ClassifierSettings())
clips, labels = torch.from_numpy(np.concatenate([made, made])), torch.eye(3)[:2]
losses = [l2a_ray.classifier.step.train_step(network, optimizer, clips, labels) for _ in range(2)]
assert losses[0] != losses[1]
assert not any(name.partition(".")[0] == "ray" for name in sys.modules)
print("ran without Ray")
"""


def test_everything_pure_runs_where_ray_is_absent(tmp_path: Path) -> None:
    folders = [Path(__file__).parent, Path(__file__).parents[1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ran without Ray\n"
