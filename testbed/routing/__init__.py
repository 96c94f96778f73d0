"""Routing in the emulated network: who routes what, and the daemons that do it."""
