"""The action classifier: networks, the pure training step, its data feed, Ray Train around them, and evaluation."""
