"""RLlib's algorithms by name, each with what a selection problem asks of it."""

from collections.abc import Callable
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from envs.pair_selection import EnvFiles, PairSelectionEnv
from l2a_ray.errors import SettingError
from l2a_ray.selector.rl.credit import SURROGATES, crediting
from l2a_ray.selector.rl.exploration import HIGH, LOW, WEIGHT, exploring
from l2a_ray.selector.rl.module import SelectorModule
from l2a_ray.selector.rl.reinforce import ReinforceConfig
from l2a_ray.selector.rl.runner import SelectionRunner
from l2a_ray.selector.rl.settings import SelectorSettings

ENVIRONMENT = "l2a-pair-selection"  # RLlib's own registry, whose entries reach every env runner


def _reinforce(settings: SelectorSettings) -> AlgorithmConfig:
    updates = settings.steps_per_iteration // settings.steps_per_update
    return ReinforceConfig().training(updates_per_iteration=updates)


def _ppo(settings: SelectorSettings) -> AlgorithmConfig:
    runners = max(1, settings.env_runners)
    return PPOConfig().training(
        train_batch_size_per_learner=settings.steps_per_iteration * runners,
        minibatch_size=settings.steps_per_update * runners,
    )


def _asynchronous(config: AlgorithmConfig, settings: SelectorSettings) -> AlgorithmConfig:
    steps = settings.steps_per_iteration * settings.env_runners
    config = config.training(train_batch_size_per_learner=settings.steps_per_update)
    return config.reporting(min_sample_timesteps_per_iteration=steps)


CONFIGS: dict[str, Callable[[SelectorSettings], AlgorithmConfig]] = {
    "REINFORCE": _reinforce,
    "PPO": _ppo,
    "APPO": lambda settings: _asynchronous(APPOConfig(), settings),
    "IMPALA": lambda settings: _asynchronous(IMPALAConfig(), settings),
}


def build_config(settings: SelectorSettings, files: EnvFiles, module: dict[str, Any], seed: int) -> AlgorithmConfig:
    """Return the RLlib configuration of the algorithm that the settings name, in the selection environment.

    Args:
        settings: the Selector's settings.
        files: what the environment is built from.
        module: ``model_config`` of ``SelectorModule``.
        seed: of everything that RLlib draws.

    Raises:
        SettingError: the algorithm knows no such option, or returns would be summed over cut episodes.
    """
    if settings.discount > 0 and settings.steps_per_update % files.settings.steps:
        reason = f"returns need whole episodes: steps_per_update must be a multiple of env.steps={files.settings.steps}"
        raise SettingError("discount", settings.discount, reason)
    register_env(ENVIRONMENT, PairSelectionEnv.from_files)
    return configure(settings, ENVIRONMENT, {"files": files}, module, seed)


def configure(
    settings: SelectorSettings, env: str, env_config: dict[str, Any], module: dict[str, Any], seed: int
) -> AlgorithmConfig:
    """Return the configuration in any environment of the same spaces that is registered with RLlib as ``env``."""
    config = _with_options(CONFIGS[settings.algorithm](settings), settings)
    return (
        config.environment(env, env_config=env_config, disable_env_checking=True)
        .env_runners(
            num_env_runners=settings.env_runners,
            num_gpus_per_env_runner=settings.gpus_per_env_runner,
            env_runner_cls=SelectionRunner,
            batch_mode="truncate_episodes",
            rollout_fragment_length=settings.steps_per_update,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=SelectorModule, model_config=module))
        # A runner that dies costs its episode: another takes its place at once, and the others' steps are used.
        .fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=0)
        .debugging(seed=seed, log_level="ERROR")
        .reporting(min_time_s_per_iteration=0)
    )


def _with_options(config: AlgorithmConfig, settings: SelectorSettings) -> AlgorithmConfig:
    """Apply what the settings say of learning: rate, discount, exploration, and the algorithm's own options."""
    try:
        config = config.training(lr=settings.learning_rate, gamma=settings.discount, **settings.options)
    except TypeError as error:
        reason = f"{settings.algorithm} does not take them ({error}); RLlib's documentation lists its options"
        raise SettingError("options", settings.options, reason) from error
    learner = config.get_default_learner_class()
    if settings.credit == "pair":
        learner = crediting(learner, SURROGATES[settings.algorithm])
    return config.learners(
        num_learners=settings.learners,
        num_gpus_per_learner=settings.gpus_per_learner,
        learner_class=exploring(learner),
        learner_config_dict={
            WEIGHT: settings.exploration,
            LOW: settings.exploration_low,
            HIGH: settings.exploration_high,
        },
    )
