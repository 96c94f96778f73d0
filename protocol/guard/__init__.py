"""The fail-closed guard between red and black (docs/guard.md): pure, no I/O."""
