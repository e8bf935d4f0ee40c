"""Simulation of a placement under a workload: arrival processes, workloads, statistics and the compiled simulator."""
