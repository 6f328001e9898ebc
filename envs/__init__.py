"""The selection problem as a Gymnasium environment. Importing this package registers ``l2a/PairSelection-v0``.

It imports no PyTorch: `l2a --help` reads ``envs.settings`` through it and need not wait.
"""

import gymnasium

gymnasium.register(id="l2a/PairSelection-v0", entry_point="envs.making:make")
