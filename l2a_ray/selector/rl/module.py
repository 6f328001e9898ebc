"""The Selector as an RLModule: a logit a pair, and the value of a state for the algorithms that ask for it.

Axes: B pairs in a state, F features of a clip, L length of a label vector; leading dimensions are batch (and time).
"""

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import (
    TARGET_NETWORK_ACTION_DIST_INPUTS,
    InferenceOnlyAPI,
    TargetNetworkAPI,
    ValueFunctionAPI,
)
from ray.rllib.core.rl_module.torch import TorchRLModule

from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.rl.distribution import IndependentBernoulli


class SelectorModule(TorchRLModule, ValueFunctionAPI, TargetNetworkAPI, InferenceOnlyAPI):
    """Serves REINFORCE, PPO, APPO and IMPALA alike.

    The policy scores each pair by the same MLP, so reordering the pairs reorders the logits. The value comes from a
    copy of that MLP, its outputs averaged over the pairs, so reordering does not change it.

    ``model_config`` holds ``feature_size``, ``label_size``, ``hidden`` and ``initial`` (the policy's starting weights,
    with the features' mean and spread).
    """

    framework = "torch"

    def setup(self) -> None:
        """Build the networks."""
        self.action_dist_cls = IndependentBernoulli
        self.policy = self._network()
        self.policy.load_state_dict(self.model_config["initial"])
        if not self.inference_only:
            self.critic = self._network()
            self.critic.load_state_dict(self.model_config["initial"])

    def _network(self) -> SelectorNetwork:
        config = self.model_config
        return SelectorNetwork(config["feature_size"], config["label_size"], config["hidden"])

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.policy(batch[Columns.OBS])}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        """Return the value of each state, shape (batch,) or (batch, time)."""
        values: torch.Tensor = self.critic(batch[Columns.OBS]).mean(dim=-1)
        return values

    def make_target_networks(self) -> None:
        """Make the slowly following copy of the policy that APPO compares with."""
        self.target = self._network()
        self.target.load_state_dict(self.policy.state_dict())

    def get_target_network_pairs(self) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        """Return what follows what."""
        return [(self.policy, self.target)]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the target policy's logits."""
        with torch.no_grad():
            return {TARGET_NETWORK_ACTION_DIST_INPUTS: self.target(batch[Columns.OBS])}

    def get_non_inference_attributes(self) -> list[str]:
        """Name what an env runner does without."""
        return ["critic", "target"]
