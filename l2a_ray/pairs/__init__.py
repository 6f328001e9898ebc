"""Which clips may be composited: class names, candidate pairs, and what is known of each clip."""
