"""How another program starts a daemon quickly: the command and the environment.

Interpreter start-up is a third of a daemon's start if done the usual way: ``site`` imports whatever
the ``.pth`` files of the environment ask for, and the console script brings click. Here ``site`` is
left out (``-S``) and the two directories it would have found are named; byte code is used and kept.

Daemons started here share their machine with those of other devices, hence ``--batch``: a daemon
that is woken does not push aside the one that runs, which ends its step first as it would on a
machine of its own (docs/decisions/0003-daemon-loop.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import cryptography

from protocol.daemon import entry

DAEMONS = ("idpd", "miked")
"""The daemons of every IPsec device."""

PROXY = "mproxyd"
"""The multicast proxy, of an IPsec device with clients and of a LAN router."""

GATEWAY = "gatewayd"
"""What joins the legs of an IDP security gateway."""

_HERE = Path(__file__).resolve().parent


def command(daemon: str, config: Path | str, *flags: str) -> list[str]:
    """Return the argument vector that runs a daemon (`DAEMONS` or another) with a TOML file."""
    if daemon not in (*DAEMONS, PROXY, GATEWAY):
        raise ValueError(f"no daemon {daemon!r}: {', '.join(DAEMONS)}, {PROXY} or {GATEWAY}")
    program = str(_HERE / f"{daemon}.py")
    return [sys.executable, "-S", "-P", program, "run", str(config), entry.BATCH, *flags]


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for `command`; without ``base``, that of this process."""
    result = dict(os.environ if base is None else base)
    libraries = Path(str(cryptography.__file__)).resolve().parents[1]
    result["PYTHONPATH"] = os.pathsep.join([str(_HERE.parents[1]), str(libraries)])
    result.pop("PYTHONDONTWRITEBYTECODE", None)
    return result
