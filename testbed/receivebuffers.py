"""Room in the sockets of daemons without privileges: the limit is one for a whole machine.

miked has no capability to go beyond ``net.core.rmem_max``, 208 KiB as Linux comes: some 250
messages of a flood, or of a large group. On a device a sysctl of ours raises it (``packaging``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

LIMIT: Final = Path("/proc/sys/net/core/rmem_max")

WANTED: Final = 1_048_576
"""What a daemon asks for (`protocol.daemon.sockets.RECEIVE_BUFFER_BYTES`)."""


def raise_limit(path: Path = LIMIT) -> bool:
    """Raise the kernel's limit, never lower it; it stays until the machine is started anew.

    To be called in the machine's own network namespace: others do not have the setting.

    Returns:
        Whether there is room now.
    """
    try:
        if int(path.read_text(encoding="ascii")) < WANTED:
            path.write_text(f"{WANTED}\n", encoding="ascii")
    except (OSError, ValueError):
        return False
    return True
