"""A selection problem without video whose best answer is known, in the environment's own spaces and form of reward."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from envs.pair_selection import moving_average
from l2a_ray.selector.network import SelectorNetwork

B, F, L = 8, 3, 2
EPISODE = 8  # steps
OBSERVATIONS = spaces.Box(-np.inf, np.inf, (B, 2 * F + 2 * L), np.float32)


class Bandit(gymnasium.Env[NDArray[np.float32], NDArray[np.int8]]):
    """A pair is good if its first feature is positive: choosing it lowers the loss by `sign` / B, another raises it.

    The reward is the environment's own: R = delta - L. ``blind`` hides the pairs from the policy. ``credit`` tells
    what each pair is worth, its own part of the loss, times that.
    """

    def __init__(self, sign: float = 1.0, blind: bool = False, credit: float | None = None) -> None:
        self.sign, self.blind, self.credit = sign, blind, credit
        self.observation_space, self.action_space = OBSERVATIONS, spaces.MultiBinary(B)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.left, self.delta = EPISODE, 0.0
        return self.draw(), {}

    def draw(self) -> NDArray[np.float32]:
        self.state = self.np_random.normal(size=(B, 2 * F + 2 * L)).astype(np.float32)
        return np.zeros_like(self.state) if self.blind else self.state

    def step(self, action: NDArray[np.int8]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        worth = self.sign * np.where(self.state[:, 0] > 0, 1, -1) / B
        loss = -float((action * worth).sum())
        info = {} if self.credit is None else {"credit": (self.credit * worth).astype(np.float32)}
        reward, self.delta = self.delta - loss, moving_average(self.delta, loss, 5)
        self.left -= 1
        return self.draw(), reward, False, self.left == 0, info


def initial(seed: int = 0) -> SelectorNetwork:
    torch.manual_seed(seed)
    return SelectorNetwork(F, L, (16,))


def model_config(seed: int = 0) -> dict[str, Any]:
    return {"feature_size": F, "label_size": L, "hidden": (16,), "initial": initial(seed).state_dict()}


def share_won(policy: dict[str, torch.Tensor], sign: float = 1.0, blind: bool = False) -> float:
    """Return what the policy's most probable masks win on fresh states, as a share of what the best masks would."""
    network = initial()
    network.load_state_dict(policy)
    observation = torch.randn(400, B, 2 * F + 2 * L, generator=torch.Generator().manual_seed(1))
    good = sign * torch.where(observation[..., 0] > 0, 1.0, -1.0)
    with torch.no_grad():
        chosen = network(torch.zeros_like(observation) if blind else observation) > 0
    return float((chosen * good).sum() / good.clamp(min=0).sum())
