"""Training the Selector with RLlib."""
