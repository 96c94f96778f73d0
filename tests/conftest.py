"""Settings of all tests: Hypothesis has no deadline, as machines may be busy or emulated."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("project", deadline=None, print_blob=True)
settings.load_profile("project")
