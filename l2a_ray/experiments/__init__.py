"""Tables of the paper: many configurations, repetitions, one page."""
