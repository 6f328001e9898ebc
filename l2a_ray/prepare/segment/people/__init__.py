"""People by small networks whose weights come with this package: who is there, and which pixels are theirs."""
