"""What a step of each training method costs, against one of supervised training.

A step is what `train` does with a batch that is there: all forward passes, backward, SGD, the average of the weights;
to make the samples, which the tasks do beside it, is not in it. ``batch_size`` labelled clips a step, and as many
unlabelled ones as the method's authors take (``classifier.semi.mu``), or --mu times as many for all. One thread, times
of the thread itself, the best of all rounds. Clips are random, as are the weights: neither plays a part.

Run it: ``python benchmarks/methods.py [--network small3d] [--batch 8] [--frames 8] [--crop 112] [--mu 1]``.
Figures: docs/benchmarks.md.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from l2a_ray.classifier.data import TrainingData
from l2a_ray.classifier.methods import METHODS
from l2a_ray.classifier.methods.base import Batch, Method
from l2a_ray.classifier.semi import SemiSettings
from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings
from l2a_ray.classifier.step import descend, make_optimizer
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.schedule import UNLABELLED

CLASSES, TEACHER = 21, 1000
DATA = TrainingData(np.zeros(2, np.bytes_), np.zeros(1, np.int32), None, np.ones(1, np.int32), teacher_classes=TEACHER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="small3d")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--crop", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mu", type=float)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    basic = ClassifierSettings(
        network=NetworkSettings(name=arguments.network),
        batch_size=arguments.batch,
        learning_rate=0.001,
        semi=SemiSettings(mu=arguments.mu),
    )
    alone = 0.0
    for name in METHODS:
        settings = replace(basic, method=name)
        taken = seconds(settings, arguments.frames, arguments.crop, arguments.rounds)
        alone = alone or taken  # supervised comes first
        print(f"{name:12} {settings.unlabelled:3} unlabelled clips, {taken:8.4f} s a step, {taken / alone:6.2f} times")


def seconds(settings: ClassifierSettings, frames: int, crop: int, rounds: int) -> float:
    """Return the time of the fastest step."""
    torch.manual_seed(0)
    network = build_network(settings.network, CLASSES)
    method = METHODS[settings.method](settings, network)
    batch = random_batch(method, settings, frames, crop)
    learner = method.learner(network, DATA, known=False)
    optimizer = make_optimizer(network, settings)
    found = []
    for _ in range(rounds + 1):  # the first makes the optimiser's state
        start = time.thread_time()
        descend(learner, optimizer, lambda: method.loss(learner, batch, 1, 2))
        method.after_step(network)
        found.append(time.thread_time() - start)
    return min(found[1:])


def random_batch(method: Method, settings: ClassifierSettings, frames: int, crop: int) -> Batch:
    """Return a batch of random clips in all views that a method asks for."""
    names, views = [], []
    for stream in method.streams(DATA):
        count = settings.unlabelled if stream.name == UNLABELLED else settings.batch_size
        names += [stream.name] * count * len(stream.views)
        views += list(stream.views) * count
    clips = torch.randint(256, (len(names), frames, crop, crop, 3), dtype=torch.uint8)
    labels = torch.eye(CLASSES)[torch.randint(CLASSES, (len(names),))]
    boxes, teacher = clips[..., 0] < 64, torch.full((len(names), TEACHER), 1 / TEACHER)
    return Batch(clips, labels, np.array(names), np.array(views), boxes, teacher)


if __name__ == "__main__":
    main()
