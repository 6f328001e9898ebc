"""Prepared clips: frames, clean background and masks of each video, made once (prepare) and kept (store)."""
