"""``idpd``: the daemon of the IPsec discovery protocol; see ``idpd --help``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the command ``idpd``."""
    from protocol.daemon.entry import main_of

    main_of("idpd", sys.argv[1:])


if __name__ == "__main__":
    main()
