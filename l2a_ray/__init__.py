"""Learn2Augment on Ray: learn which pairs of videos to composite, and train a better action classifier with them."""
