"""The classifier that a run recommends: chosen on D_val, kept in a folder, asked about new videos, exported."""
