"""Deterministic simulation of IDP and MIKE on virtual time (docs/SIMULATOR.md)."""
