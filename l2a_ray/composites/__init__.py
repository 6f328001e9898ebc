"""How two clips become one sample: the paper's paste, the rivals' mixes, the loader and the batch plan."""
