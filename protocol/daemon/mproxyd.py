"""``mproxyd``: the multicast proxy daemon; see ``mproxyd --help``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the command ``mproxyd``."""
    from protocol.daemon.entry import main_of

    main_of("mproxyd", sys.argv[1:])


if __name__ == "__main__":
    main()
