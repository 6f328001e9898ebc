"""The selection problem as a Gymnasium environment. Importing this package registers ``l2a/PairSelection-v0``."""

import gymnasium

from envs.pair_selection import PairSelectionEnv
from envs.settings import EnvSettings

__all__ = ["EnvSettings", "PairSelectionEnv"]

gymnasium.register(id="l2a/PairSelection-v0", entry_point="envs.pair_selection:PairSelectionEnv")
