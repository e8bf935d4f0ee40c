"""Results in a form for people."""
