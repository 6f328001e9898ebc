"""Where a run runs: Ray, its cluster, progress, counters, trackers."""
