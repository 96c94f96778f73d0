"""From the command line to a running daemon, by the shortest way.

``run CONFIG`` is taken apart here by hand, because importing click costs as much as ten joins;
everything else, ``--help`` and wrong usage included, goes to click (`protocol.daemon.cli`), which
knows the same command and the same options.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from protocol.daemon.process import DaemonProcess

EXIT_WITH_PARENT = "--exit-with-parent"
RECORD_DATAGRAMS = "--record-datagrams"
RECORD_SECRETS = "--record-secrets"
DEBUG = "--debug"
BATCH = "--batch"
DEVICE_DAEMONS = ("idpd", "miked")
RUN_FLAGS = frozenset({EXIT_WITH_PARENT, RECORD_DATAGRAMS, RECORD_SECRETS, DEBUG, BATCH})


def main_of(daemon: str, arguments: list[str]) -> NoReturn:
    """Run the command line of a daemon and exit."""
    if len(arguments) >= 2 and arguments[0] == "run" and not arguments[1].startswith("-"):
        flags = frozenset(arguments[2:])
        if flags <= (RUN_FLAGS if daemon in DEVICE_DAEMONS else RUN_FLAGS - {RECORD_SECRETS}):
            sys.exit(run(daemon, Path(arguments[1]), flags))
    from protocol.daemon.cli import command_line

    command_line(daemon).main(arguments, prog_name=daemon)


def make_process(daemon: str, config_path: Path, flags: frozenset[str]) -> DaemonProcess:
    """Return the process object of a daemon, its file read.

    Raises:
        LocalError: the file cannot be read, or a setting in it is wrong.
    """
    options: dict[str, Any] = {
        "recording": RECORD_DATAGRAMS in flags,
        "exit_with_parent": EXIT_WITH_PARENT in flags,
        "log_level": "debug" if DEBUG in flags else "info",
    }
    if daemon == "mproxyd":
        from protocol.daemon import mproxyconfig
        from protocol.daemon.mproxyservice import MproxyService

        return MproxyService(mproxyconfig.load(config_path), **options)
    if daemon == "gatewayd":
        from protocol.daemon import gatewayconfig
        from protocol.daemon.gatewayservice import GatewayService

        return GatewayService(gatewayconfig.load(config_path), **options)
    from protocol.daemon.config import load

    config = load(config_path, with_psk=daemon == "idpd")
    options["recording_secrets"] = RECORD_SECRETS in flags
    if daemon == "idpd":
        from protocol.daemon.idpservice import IdpService

        return IdpService(config, **options)
    from protocol.daemon.mikeservice import MikeService

    return MikeService(config, **options)


def run(daemon: str, config_path: Path, flags: frozenset[str]) -> int:
    """Run a daemon until it is told to end; every error is one line on standard error."""
    # What is loaded stays; the daemon collects garbage itself, when idle.
    gc.disable()
    if BATCH in flags:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    from protocol.core.errors import LocalError

    try:
        if os.geteuid() == 0:
            from protocol.daemon.privileges import become_user

            become_user(daemon, config_path)
        return make_process(daemon, config_path, flags).run()
    except LocalError as error:
        sys.stderr.write(f"{daemon}: {' '.join(str(error).splitlines())}\n")
        return 1
    except KeyboardInterrupt:
        return 130
