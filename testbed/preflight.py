"""What this machine can do for the testbed, what is missing, and the command that cures it."""

import os
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from testbed.vm import layout

_PROBE_SECONDS: Final = 20


class State(StrEnum):
    """The outcome of one check."""

    OK = "ok"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Check:
    """One capability: whether it is there, what was seen, and the command that cures its lack."""

    name: str
    state: State
    detail: str
    cure: str = ""


def check_root() -> Check:
    """Check whether this process is root."""
    if os.geteuid() == 0:
        return Check("root", State.OK, "running as root")
    return Check("root", State.MISSING, "not running as root", "run with sudo")


def _in_namespace(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a fresh network namespace."""
    return subprocess.run(
        ["unshare", "--net", "--", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=_PROBE_SECONDS,
        env={**os.environ, "PATH": layout.search_path()},
    )


def check_namespaces() -> Check:
    """Check whether a network namespace can be made."""
    done = _in_namespace("true")
    if done.returncode == 0:
        return Check("namespaces", State.OK, "made one")
    return Check("namespaces", State.MISSING, done.stderr.strip(), "run with sudo")


def check_esp() -> Check:
    """Check whether the kernel takes an ESP security association."""
    argv = ["ip", "xfrm", "state", "add", "src", "::1", "dst", "::1", "proto", "esp"]
    argv += [
        "spi",
        "0x100",
        "mode",
        "transport",
        "aead",
        "rfc4106(gcm(aes))",
        "0x" + "11" * 20,
        "128",
    ]
    done = _in_namespace(*argv)
    if done.returncode == 0:
        return Check("esp", State.OK, "the kernel took an AES-GCM SA")
    return Check("esp", State.MISSING, done.stderr.strip(), "use --env vm")
