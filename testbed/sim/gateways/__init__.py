"""Partitions that gateways join, in the simulator: docs/SIMULATOR.md."""
