"""What stands between RLlib's episodes and the Selector's module: one piece each way.

RLlib's default pipelines serve every kind of space, module and agent, by eleven pieces that each restructure the batch
and log their time; that took half of an env runner's time here.

Axes: N environments of a runner, B pairs in a state, V values in a clip's vector.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from l2a_ray.selector.rl.module import SelectorModule


class StatesToModule(ConnectorV2):
    """Stacks the last observations of the running episodes, on the module's device."""

    def __call__(self, *, rl_module: SelectorModule, episodes: Sequence[SingleAgentEpisode], **kwargs: Any) -> Any:
        """Return the batch that the module sees."""
        states_NB2V = np.stack([episode.get_observations(-1) for episode in episodes])
        device = next(rl_module.parameters()).device
        return {Columns.OBS: torch.from_numpy(states_NB2V).to(device)}


class MasksToEnv(ConnectorV2):
    """Draws the masks; without exploration they are the most probable ones."""

    def __call__(self, *, rl_module: SelectorModule, batch: dict[str, Any], explore: bool, **kwargs: Any) -> Any:
        """Return the masks, with what the learner wants to know of them."""
        logits_NB = batch[Columns.ACTION_DIST_INPUTS]
        distribution = rl_module.action_dist_cls.from_logits(logits_NB)
        masks_NB = (distribution if explore else distribution.to_deterministic()).sample()
        return {
            Columns.ACTIONS: masks_NB.cpu().numpy(),
            Columns.ACTION_LOGP: distribution.logp(masks_NB).cpu().numpy(),
            Columns.ACTION_DIST_INPUTS: logits_NB.cpu().numpy(),
        }
