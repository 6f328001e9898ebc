"""Clean backgrounds: other times' colours first, then a fill."""
