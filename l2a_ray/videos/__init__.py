"""Video files: which there are (catalog), how they are split (splits), read (decode) and made up (generate)."""
