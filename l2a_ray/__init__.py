"""Learn2Augment on Ray: learn which pairs of videos to composite, and train a better action classifier with them."""

import os

# PyTorch's threads wait for each other by spinning. On few CPUs that steals the time of those who make samples beside
# them, and the step waits for a thread that cannot run. Read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
