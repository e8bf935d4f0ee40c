"""Models that the runtime brings along: one that takes its profiled time, and one that another server answers for."""
