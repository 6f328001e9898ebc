"""Learning from what each pair of a step was worth: one surrogate a pair, for whichever algorithm learns.

Log-probabilities are per pair before they are summed, so ratios, clips and advantages can be too. A pair's advantage is
its credit times (choice - omega): what its choice was worth, less the mean over both choices (COMA, Eq. 4: Foerster et
al. 2018, https://arxiv.org/abs/1705.08926). The other terms of an algorithm's loss, entropy and KL, stay; there is no
value function, for the mean over both choices takes its place.

Axes: S steps, B pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ray.rllib.algorithms.ppo.ppo import LEARNER_RESULTS_KL_KEY
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import TARGET_NETWORK_ACTION_DIST_INPUTS
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from l2a_ray.selector.rl.distribution import IndependentBernoulli

CREDIT = "credit"
"""What the environment calls what each pair was worth, and a batch too."""


def scaled(credit_SB: Tensor) -> Tensor:
    """Return the credits divided by their root mean square in their step; zeros stay zeros.

    What is learned is which pairs are better, whatever the loss's scale. (Their deviation would not do: it is 0 where
    all are alike.)
    """
    return credit_SB / (credit_SB.square().mean(dim=1, keepdim=True).sqrt() + 1e-8)


@dataclass(frozen=True, eq=False)
class Choices:
    """Choices and what they were worth, all (S, B).

    Args:
        logits: of the policy that learns.
        mask: the choices, 0 or 1.
        credit: what choosing each pair was worth, scaled.
        behaviour: logits of the policy that chose.
        target: logits of the target policy, of APPO.
    """

    logits: Tensor
    mask: Tensor
    credit: Tensor
    behaviour: Tensor
    target: Tensor

    def log_prob(self, logits_SB: Tensor) -> Tensor:
        """Return each choice's log-probability."""
        return -binary_cross_entropy_with_logits(logits_SB, self.mask, reduction="none")

    @property
    def advantage(self) -> Tensor:
        """What each choice was worth, less the mean over both as the policy that chose had them."""
        return self.credit * (self.mask - self.behaviour.sigmoid())


Surrogate = Callable[[Choices, Any], Tensor]
"""What is to be raised, (S, B), by an algorithm's configuration."""


def _reinforce(choices: Choices, config: Any) -> Tensor:
    """J is linear in each omega_i while the other choices are as drawn, with slope credit_i.

    So the choice itself need not be sampled: dJ / d omega_i = E[credit_i].
    """
    return choices.logits.sigmoid() * choices.credit


def _ppo(choices: Choices, config: Any) -> Tensor:
    ratio = (choices.log_prob(choices.logits) - choices.log_prob(choices.behaviour)).exp()
    return _clipped(ratio, choices.advantage, config)


def _impala(choices: Choices, config: Any) -> Tensor:
    log_prob = choices.log_prob(choices.logits)
    rho = (log_prob.detach() - choices.log_prob(choices.behaviour)).exp()
    return log_prob * _v_trace(rho, choices.advantage, config)


def _appo(choices: Choices, config: Any) -> Tensor:
    log_prob, behaviour, target = map(choices.log_prob, (choices.logits, choices.behaviour, choices.target))
    advantage = _v_trace((target - behaviour).exp(), choices.advantage, config)
    # As RLlib's: the ratio to the target policy, where the target's own ratio is not too small.
    ratio = (behaviour - target).exp().clamp(max=2.0) * (log_prob - behaviour).exp()
    return _clipped(ratio, advantage, config)


def _v_trace(rho: Tensor, advantage: Tensor, config: Any) -> Tensor:
    """Return V-trace's advantages where nothing is owed to later steps: rho (r - V), rho cut off."""
    return rho.clamp(max=config.vtrace_clip_pg_rho_threshold) * advantage


def _clipped(ratio: Tensor, advantage: Tensor, config: Any) -> Tensor:
    clip: float = config.clip_param
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


SURROGATES: dict[str, Surrogate] = {"REINFORCE": _reinforce, "PPO": _ppo, "APPO": _appo, "IMPALA": _impala}


def credited_loss(logits_SB: Tensor, credit_SB: Tensor) -> Tensor:
    """Return REINFORCE's loss: it moves each pair's omega by what choosing it was worth."""
    credit = scaled(credit_SB)
    return -_reinforce(Choices(logits_SB, credit, credit, logits_SB, logits_SB), None).sum(dim=1).mean()


def crediting(learner: type[TorchLearner], surrogate: Surrogate) -> type[TorchLearner]:
    """Return the learner with a surrogate a pair in place of its own."""

    class Crediting(learner):
        def compute_loss_for_module(
            self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
        ) -> Tensor:
            # A row that is appended to each episode, for its last value, is none of its steps.
            steps = batch.get(Columns.LOSS_MASK, slice(None))
            logits = fwd_out[Columns.ACTION_DIST_INPUTS][steps]
            behaviour = batch[Columns.ACTION_DIST_INPUTS][steps]
            module, target = self.module[module_id].unwrapped(), behaviour
            if hasattr(module, "target"):
                target = module.forward_target(batch)[TARGET_NETWORK_ACTION_DIST_INPUTS][steps]
            mask, credit = batch[Columns.ACTIONS][steps].float(), scaled(batch[CREDIT][steps])
            policy_loss = -surrogate(Choices(logits, mask, credit, behaviour, target), config).sum(dim=1).mean()
            policy, other = map(IndependentBernoulli.from_logits, (logits, target))
            entropy, kl = policy.entropy().mean(), other.kl(policy).mean()
            self.metrics.log_dict(
                {POLICY_LOSS_KEY: policy_loss, ENTROPY_KEY: entropy, LEARNER_RESULTS_KL_KEY: kl},
                key=module_id,
                window=1,
            )
            loss = policy_loss
            if hasattr(self, "entropy_coeff_schedulers_per_module"):
                loss = loss - self.entropy_coeff_schedulers_per_module[module_id].get_current_value() * entropy
            if getattr(config, "use_kl_loss", False):
                loss = loss + self.curr_kl_coeffs_per_module[module_id] * kl
            return loss

    Crediting.__name__ = Crediting.__qualname__ = f"Crediting{learner.__name__}"
    return Crediting
