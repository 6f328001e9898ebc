"""The Selector's network: two clips' features and labels in, one logit for the pair out (paper, section 3.1).

Pure PyTorch. Axes: N clips, F features, L label size, V = F + L one clip's vector, H first hidden layer.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from l2a_ray.errors import SettingError

SMALLEST_STD = 1e-6


class SelectorNetwork(nn.Module):
    """An MLP over ``[feature(V_f), label(y_f), feature(V_b), label(y_b)]``; ReLU between layers, one logit a pair.

    The first layer is linear in the concatenation, ``W x + b = (W_f x_f + b) + W_b x_b``, so its two halves can be
    computed once a clip instead of once a pair. ``forward`` goes the same way: there is one implementation.

    The last layer starts small (normal, standard deviation 0.01, no bias; ours), so that every omega starts near 0.5
    and exploration starts unprejudiced. Weights are drawn from PyTorch's global generator: seed it before.

    Args:
        feature_size: F, values in a clip's feature.
        label_size: L, values in a label vector.
        hidden: sizes of the hidden layers (paper: 2048, 1024, 512).

    Raises:
        SettingError: there is no hidden layer, or one without units.
    """

    feature_mean_F: torch.Tensor
    feature_scale_F: torch.Tensor

    def __init__(self, feature_size: int, label_size: int, hidden: Sequence[int] = (2048, 1024, 512)) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise SettingError("hidden", tuple(hidden), "must hold at least one layer size, each 1 or more")
        self.feature_size, self.label_size, self.hidden = feature_size, label_size, tuple(hidden)
        self.register_buffer("feature_mean_F", torch.zeros(feature_size))
        self.register_buffer("feature_scale_F", torch.ones(feature_size))
        self.first = nn.Linear(2 * self.clip_size, hidden[0])
        self.deeper = nn.ModuleList(nn.Linear(wide, narrow) for wide, narrow in pairwise(hidden))
        self.last = nn.Linear(hidden[-1], 1)
        nn.init.normal_(self.last.weight, std=0.01)
        nn.init.zeros_(self.last.bias)

    @property
    def clip_size(self) -> int:
        """V: values in one clip's vector, its feature followed by its label."""
        return self.feature_size + self.label_size

    def standardise(self, features_NF: NDArray[np.float32], blocks: Sequence[int] | None = None) -> None:
        """Take mean and scale from the training clips' raw features; both of a pair are centred and scaled by them.

        Every block of columns gets a mean square length of 1, each of its columns the same part of it. So a block of
        hundreds of features weighs as much as a label, and the noise of a policy gradient in all of them together does
        not drown what one column tells (ours; docs/train-selector.md has the measurement). A column that never varies
        is only centred.

        Args:
            features_NF: float32 (N, F).
            blocks: numbers of columns, in order; their sum is F. None: all are one block.
        """
        features = torch.as_tensor(features_NF, dtype=torch.float32)
        sizes = torch.tensor([size for size in blocks or (self.feature_size,) for _ in range(size)])
        std = features.std(dim=0, correction=0)
        self.feature_mean_F.copy_(features.mean(dim=0))
        self.feature_scale_F.copy_(torch.where(std > SMALLEST_STD, std * sizes.sqrt(), 1.0))

    def half_f(self, clips: torch.Tensor) -> torch.Tensor:
        """First layer's part for foregrounds, bias included: (..., V) -> (..., H)."""
        return functional.linear(self._scaled(clips), self.first.weight[:, : self.clip_size], self.first.bias)

    def half_b(self, clips: torch.Tensor) -> torch.Tensor:
        """First layer's part for backgrounds: (..., V) -> (..., H)."""
        return functional.linear(self._scaled(clips), self.first.weight[:, self.clip_size :])

    def head(self, halves: torch.Tensor) -> torch.Tensor:
        """All that follows the sum of a pair's two halves: (..., H) -> logits (...,)."""
        hidden = functional.relu(halves)
        for layer in self.deeper:
            hidden = functional.relu(layer(hidden), inplace=True)
        logits: torch.Tensor = self.last(hidden).squeeze(-1)
        return logits

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        """Score pairs: (..., 2V) raw features and labels -> logits (...,); omega is their sigmoid."""
        foreground, background = pairs[..., : self.clip_size], pairs[..., self.clip_size :]
        return self.head(self.half_f(foreground) + self.half_b(background))

    def _scaled(self, clips: torch.Tensor) -> torch.Tensor:
        features, labels = clips[..., : self.feature_size], clips[..., self.feature_size :]
        return torch.cat([(features - self.feature_mean_F) / self.feature_scale_F, labels], dim=-1)
