"""RLlib's algorithms by name, each with the settings that a selection problem needs."""

from collections.abc import Callable
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from envs.pair_selection import EnvFiles, PairSelectionEnv
from l2a_ray.errors import SettingError
from l2a_ray.selector.rl.module import SelectorModule
from l2a_ray.selector.rl.reinforce import ReinforceConfig
from l2a_ray.selector.rl.runner import RepeatableEnvRunner, StepRecorder
from l2a_ray.selector.rl.settings import SelectorSettings


def _reinforce(settings: SelectorSettings, episode: int) -> AlgorithmConfig:
    if settings.discount > 0 and settings.steps_per_update % episode:
        reason = f"returns need whole episodes: selector.steps_per_update must be a multiple of env.steps={episode}"
        raise SettingError("selector.discount", settings.discount, reason)
    return (
        ReinforceConfig()
        .training(updates_per_iteration=settings.steps_per_iteration // settings.steps_per_update)
        .env_runners(rollout_fragment_length=settings.steps_per_update)
    )


ENVIRONMENT = "l2a-pair-selection"  # RLlib's own registry, whose entries reach every env runner
CONFIGS: dict[str, Callable[[SelectorSettings, int], AlgorithmConfig]] = {"REINFORCE": _reinforce}


def build_config(settings: SelectorSettings, files: EnvFiles, module: dict[str, Any], seed: int) -> AlgorithmConfig:
    """Return the RLlib configuration of one of the algorithms in ``CONFIGS``.

    Args:
        settings: the Selector's settings.
        files: what the environment is built from.
        module: ``model_config`` of ``SelectorModule``.
        seed: of everything that RLlib draws.
    """
    register_env(ENVIRONMENT, PairSelectionEnv.from_files)
    config = CONFIGS[settings.algorithm](settings, files.settings.steps)
    return (
        config.environment(ENVIRONMENT, env_config={"files": files}, disable_env_checking=True)
        .training(lr=settings.learning_rate, gamma=settings.discount)
        .env_runners(
            num_env_runners=settings.env_runners, env_runner_cls=RepeatableEnvRunner, batch_mode="truncate_episodes"
        )
        .learners(num_learners=0)
        .callbacks(StepRecorder)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=SelectorModule, model_config=module))
        .debugging(seed=seed, log_level="ERROR")
        .reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=0)
    )
