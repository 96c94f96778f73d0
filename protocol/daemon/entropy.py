"""Unpredictable bytes for the engines, from the operating system."""

from __future__ import annotations

import os


class OsKeySource:
    """A `protocol.core.engine.KeySource` that asks the kernel."""

    def random_bytes(self, length: int) -> bytes:
        """Return ``length`` fresh bytes from the kernel's generator."""
        return os.urandom(length)
