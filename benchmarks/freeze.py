"""What a step of training costs when parts of the network are frozen, against one of the whole network.

A step is what `train` does with a batch that is there: forward, backward, SGD. The ways take turns and share one set of
weights; frozen are the whole backbone, and its first half (up to blocks.4 of EfficientNet-Lite, whose later blocks are
small pictures of many channels). The last way is the head with features that are known, as they are in all but a
sample's first looks (``classifier.looks``). One thread, times of the thread itself, the best of all rounds. Clips are
random, as are the weights: neither plays a part.

A step of the network whose backbone is frozen must cost at most a third of one of the whole.

Run it: ``python benchmarks/freeze.py [--batch 16] [--frames 8] [--crop 112] [--rounds 5]``. Figures:
docs/benchmarks.md.
"""

import argparse
import copy
import time

import torch
from torch import nn

from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings
from l2a_ray.classifier.step import make_optimizer, train_step
from l2a_ray.classifier.zoo import build_network

CLASSES = 21
SETTINGS = ClassifierSettings(learning_rate=0.001)
FIRST = ("backbone.conv_stem", "backbone.bn1", *(f"backbone.blocks.{i}" for i in range(5)))
WAYS = {"nothing": (), "up to blocks.4": FIRST, "backbone": ("backbone",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--crop", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    whole = build_network(NetworkSettings(name="timm"), CLASSES)
    size = (arguments.batch, arguments.frames, arguments.crop, arguments.crop, 3)
    clips = torch.randint(256, size, dtype=torch.uint8)
    labels = torch.eye(CLASSES)[torch.randint(CLASSES, (arguments.batch,))]
    learners: dict[str, tuple[nn.Module, torch.optim.Optimizer, torch.Tensor]] = {}
    for name, frozen in WAYS.items():
        network = copy.deepcopy(whole)
        network.freeze(frozen)
        learners[name] = (network, make_optimizer(network, SETTINGS), clips)
    head, features = copy.deepcopy(whole.head), torch.rand(arguments.batch, whole.feature_size)
    learners["backbone, known"] = (head, make_optimizer(head, SETTINGS), features)
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for turn in range(arguments.rounds + 1):
        for name, (learner, optimizer, inputs) in learners.items():
            start = time.thread_time()
            train_step(learner, optimizer, inputs, labels)
            if turn:  # the first makes the optimiser's state
                seconds[name].append(time.thread_time() - start)
    for name, taken in seconds.items():
        share = min(taken) / min(seconds["nothing"])
        print(f"frozen: {name:15} {min(taken):7.4f} s a step, {share:.4f} of the whole network's")


if __name__ == "__main__":
    main()
