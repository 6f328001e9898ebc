"""Where a network runs."""

import torch


def best_device() -> torch.device:
    """Return the GPU of this process, or the CPU where it has none. Ray shows a process the GPUs that it reserved."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
