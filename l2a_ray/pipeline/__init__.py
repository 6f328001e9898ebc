"""The stages, in the data's direction."""
