"""``miked``: the daemon of the group key protocol MIKE; see ``miked --help``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the command ``miked``."""
    from protocol.daemon.entry import main_of

    main_of("miked", sys.argv[1:])


if __name__ == "__main__":
    main()
