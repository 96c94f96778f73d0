"""``gatewayd``: the IDP security gateway daemon; see ``gatewayd --help``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the command ``gatewayd``."""
    from protocol.daemon.entry import main_of

    main_of("gatewayd", sys.argv[1:])


if __name__ == "__main__":
    main()
