"""TRX's head: queries are compared with supports by tuples of frames, in order. Pure; imports no Ray.

Perrett, Masullo, Burghardt, Mirmehdi, Damen, CVPR 2021, https://arxiv.org/abs/2101.06184, written anew from its
formulae. A tuple's projection is linear in its frames, W u = sum over i of W_i x_(p_i): so each frame is projected once
for each place that it may take, and not once for each tuple that it is in (28 pairs and 56 triples of 8 frames hold 56
and 168 frames).

Axes: B episodes, W ways, M supports of a class, R queries of an episode, N clips, T frames, F features of a frame, P
tuples of a cardinality, D numbers of a key or value.
"""

import math
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2a_ray.errors import SettingError

POSITION = 0.1  # what the position of a frame weighs beside its features (TRX's code)


class Tuples(NamedTuple):
    """What the tuples of one cardinality are compared by: keys and values, (..., P, D) each."""

    keys: Tensor
    values: Tensor


class TupleProjection(nn.Module):
    """Keys and values of the tuples of one cardinality.

    Args:
        cardinality: frames of a tuple.
        frames: T.
        features: F.
        width: D.
    """

    places: Tensor

    def __init__(self, cardinality: int, frames: int, features: int, width: int) -> None:
        super().__init__()
        self.key = nn.Linear(cardinality * features, width)
        self.value = nn.Linear(cardinality * features, width)
        self.norm = nn.LayerNorm(width)
        places = torch.tensor(list(combinations(range(frames), cardinality)))
        self.register_buffer("places", places, persistent=False)

    def forward(self, frames_NTF: Tensor) -> Tuples:
        """Project each frame once for each place in a tuple."""
        return Tuples(self.norm(self._project(frames_NTF, self.key)), self._project(frames_NTF, self.value))

    def _project(self, frames_NTF: Tensor, layer: nn.Linear) -> Tensor:
        by_place = layer.weight.reshape(len(layer.weight), self.places.shape[1], -1)  # (D, places, F)
        total: Tensor = layer.bias
        for place in range(self.places.shape[1]):
            total = total + (frames_NTF @ by_place[:, place].T)[:, self.places[:, place]]
        return total


class TrxHead(nn.Module):
    """All that TRX learns over features of frames.

    Args:
        frames: T.
        features: F.
        cardinalities: frames of the tuples, a cardinality each.
        width: D.
        dropout: of the frames' features, in training.

    Raises:
        SettingError: a tuple needs more frames than a clip has.
    """

    positions: Tensor

    def __init__(self, frames: int, features: int, cardinalities: tuple[int, ...], width: int, dropout: float) -> None:
        super().__init__()
        if max(cardinalities) > frames:
            reason = f"needs clips of as many frames with a feature each, and these have {frames}"
            advice = "Take a network of timm (fewshot.network), more frames (decode.frames) or smaller tuples"
            raise SettingError("cardinalities", list(cardinalities), f"{reason}. {advice}")
        self.projections = nn.ModuleList(TupleProjection(size, frames, features, width) for size in cardinalities)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("positions", POSITION * sinusoids(frames, features), persistent=False)
        counts = [math.comb(frames, size) for size in cardinalities]
        self.cost = max(count * max(count, width) for count in counts)
        """Numbers that a query and a support are compared by: pairs of tuples, and their values."""

    def project(self, frames_NTF: Tensor) -> list[Tuples]:
        """Return keys and values of clips' tuples, (N, P, D) a cardinality: in a test they depend on no episode."""
        placed = self.dropout(frames_NTF + self.positions)
        return [projection(placed) for projection in self.projections]

    def forward(self, queries_RTF: Tensor, supports_WMTF: Tensor) -> Tensor:
        """Return the logits of one episode, (R, W), as it is trained."""
        queries = [Tuples(*(part[None] for part in one)) for one in self.project(queries_RTF)]
        supports = [
            Tuples(*(part.reshape(1, *supports_WMTF.shape[:2], *part.shape[1:]) for part in one))
            for one in self.project(supports_WMTF.flatten(0, 1))
        ]
        return trx_logits(queries, supports)[0]


def sinusoids(frames: int, features: int) -> Tensor:
    """Return the positions of frames, (T, F), as of words (https://arxiv.org/abs/1706.03762, 3.5)."""
    rate = torch.exp(torch.arange(0, features, 2) * (-math.log(10000) / features))
    angles = torch.arange(frames)[:, None] * rate
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :features]


def trx_logits(queries: list[Tuples], supports: list[Tuples], there_BWM: Tensor | None = None) -> Tensor:
    """Return -mean over cardinalities and a query's tuples of ||v - t||^2, float (B, R, W).

    t is the class's answer to the tuple: the mean of the values of all tuples of all its supports, weighted by the
    softmax of key times key / sqrt(D).

    Args:
        queries: of each cardinality, (B, R, P, D).
        supports: of each cardinality, (B, W, M, P, D).
        there_BWM: bool; which supports count. None: all.
    """
    return torch.stack([_of_cardinality(*pair, there_BWM) for pair in zip(queries, supports, strict=True)]).mean(0)


def _of_cardinality(query: Tuples, support: Tuples, there_BWM: Tensor | None) -> Tensor:
    batch, queries, tuples, width = query.keys.shape
    ways, shots = support.keys.shape[1:3]
    keys_BWD = support.keys.reshape(batch, ways, shots * tuples, width).transpose(2, 3)
    scores = query.keys.reshape(batch, 1, queries * tuples, width) @ keys_BWD / math.sqrt(width)
    if there_BWM is not None and not there_BWM.all():
        absent = ~there_BWM[..., None].expand(-1, -1, -1, tuples).reshape(batch, ways, 1, shots * tuples)
        scores = scores.masked_fill(absent, -math.inf)
    answers = scores.softmax(dim=-1) @ support.values.reshape(batch, ways, shots * tuples, width)
    distance = (query.values.reshape(batch, 1, queries * tuples, width) - answers).square().sum(dim=-1)
    return -distance.reshape(batch, ways, queries, tuples).mean(dim=-1).transpose(1, 2)
