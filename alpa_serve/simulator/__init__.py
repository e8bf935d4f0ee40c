"""Simulation of a placement under a workload: arrival processes, workloads, statistics and the simulators."""

from alpa_serve.simulator.simulation import SimulationResult, simulate

__all__ = ["SimulationResult", "simulate"]
