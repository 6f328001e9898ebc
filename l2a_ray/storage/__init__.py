"""Files here and in object stores, locks and weights."""
