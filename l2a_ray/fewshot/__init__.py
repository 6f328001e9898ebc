"""Few-shot recognition of new classes: episodes, learners and what composites of the supports add (paper, 5.5)."""
