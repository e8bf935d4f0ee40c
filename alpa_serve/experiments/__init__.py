"""The published experiments: MaverIQ's model sets and traces with AlpaServe as the baseline."""
