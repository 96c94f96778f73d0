"""Time per SA write and per delete plus write, by kernel interface (the paper's Fig. 9).

The measurement runs in a process and a network namespace of its own, whose SAD starts empty:
``unshare -n python -m experiments.sa_write``. In every round all backends take turns, in an order
drawn from the seed, and each turn begins with an untimed write; one round before the first is
thrown away (modules load).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any

from experiments.campaign import Campaign
from experiments.errors import ExperimentError

if TYPE_CHECKING:
    from protocol.ipsec.backend import IpsecBackend, Operation
    from protocol.ipsec.model import SaId, SecurityAssociation

SOURCE = IPv6Address("2001:db8:b::1")
DESTINATION = IPv6Address("ff0e::1")
SUITES = ("3des-sha1", "aes-cbc-sha256")
"""The paper's suite, which PF_KEY can express, else the other one that a shared SA may use."""

_LIMIT_S = 900.0


def measure(campaign: Campaign, seed: int) -> list[dict[str, Any]]:
    """Measure in a private network namespace; return the rows of sa_writes.csv.

    Raises:
        ExperimentError: the measurement could not run at all.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        raise ExperimentError("no command unshare: install util-linux")
    task = {
        "backends": campaign.backends,
        "rounds": campaign.repetitions,
        "batch": campaign.batch,
        "seed": seed,
    }
    command = [unshare, "-n", sys.executable, "-m", "experiments.sa_write", json.dumps(task)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ExperimentError(f"the SA writes did not end within {_LIMIT_S:.0f} s") from None
    if done.returncode != 0:
        raise ExperimentError(f"the SA writes ended with exit code {done.returncode}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


class Subject:
    """One backend under test: writes SAs, and replaces them.

    Attributes:
        name: as in `Campaign.backends`.
        sas: how many SAs one measurement writes.
    """

    def __init__(self, name: str, batch: int, suite: str) -> None:
        from protocol.ipsec.backend import AddSa, DeleteSa
        from protocol.ipsec.model import Suite
        from protocol.xfrm.backends import make_backend
        from protocol.xfrm.command import CommandBackend

        self.name = name
        self.sas = batch if name in ("netlink batched", "ip -batch") else 1
        self.suite = Suite(suite)
        kinds = {"netlink batched": "netlink", "ip -batch": "netlink"}
        self._add, self._delete = AddSa, DeleteSa
        self._backend: IpsecBackend = (
            CommandBackend(shell=False)
            if name == "exec"
            else make_backend(kinds.get(name, name), None, self.suite)
        )
        self._commands = name == "ip -batch"

    def replace(self, old: Sequence[SaId], new: Sequence[SecurityAssociation]) -> None:
        """Delete the old and add the new, in the way this subject stands for."""
        if self._commands:
            lines = [f"xfrm state delete {_id(sa)}" for sa in old]
            _ip_batch([*lines, *(f"xfrm state add {_sa(sa)}" for sa in new)])
            return
        operations: list[Operation] = [self._delete(sa) for sa in old]
        operations += [self._add(sa) for sa in new]
        for outcome in self._backend.apply(operations):
            if not outcome.ok:
                raise ExperimentError(outcome.text or os.strerror(outcome.errno))

    def close(self) -> None:
        """Release the backend."""
        self._backend.close()


def _id(sa: SaId) -> str:
    return f"src {SOURCE} dst {sa.destination} proto esp spi {sa.spi:#x}"


def _sa(sa: SecurityAssociation) -> str:
    """Return the arguments of ``ip xfrm state add`` for a suite with cipher and MAC."""
    from protocol.ipsec.model import SUITES as PARAMETERS

    known = PARAMETERS[sa.suite]
    return (
        f"{_id(sa.id)} reqid {sa.reqid} mode {sa.mode} enc {known.encryption} "
        f"0x{sa.key.encryption.hex()} auth-trunc {known.authentication} "
        f"0x{sa.key.authentication.hex()} {known.icv_bits}"
    )


def _ip_batch(lines: Sequence[str]) -> None:
    done = subprocess.run(
        ["ip", "-batch", "-"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ExperimentError((done.stderr.strip().splitlines() or ["ip failed"])[0][:200])


class Supply:
    """Fresh SAs, with an SPI and keys of their own each."""

    def __init__(self, suite: str, seed: int) -> None:
        self._suite = suite
        self._draw = random.Random(f"{seed} keys")  # noqa: S311 - keys nobody uses
        self._spi = 0x1000

    def take(self, count: int) -> list[SecurityAssociation]:
        """Return this many SAs that nobody has written."""
        from protocol.ipsec.model import SUITES as PARAMETERS
        from protocol.ipsec.model import KeyMaterial, SecurityAssociation, Suite

        suite = Suite(self._suite)
        known = PARAMETERS[suite]
        sas = []
        for _ in range(count):
            self._spi += 1
            key = KeyMaterial(
                self._draw.randbytes(known.encryption_key_length),
                self._draw.randbytes(known.authentication_key_length),
            )
            sas.append(SecurityAssociation(SOURCE, DESTINATION, self._spi, suite, key, reqid=7))
        return sas


def rounds(
    subjects: Sequence[Subject],
    supply: Supply,
    count: int,
    seed: int,
    now_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[dict[str, Any]]:
    """Run the rounds over all subjects; return the rows."""
    draw = random.Random(f"{seed} turns")  # noqa: S311 - a plan
    rows = []
    for number in range(count + 1):
        turns = list(subjects)
        draw.shuffle(turns)
        for subject in turns:
            found = _one_round(subject, supply, now_ns)
            if number:
                rows += [{**row, "repetition": number} for row in found]
    return rows


def _one_round(subject: Subject, supply: Supply, now_ns: Callable[[], int]) -> list[dict[str, Any]]:
    """Write, then replace, then clean up; only the first two are timed.

    Before that one write and delete is done untimed: whose turn came before would else decide how
    cold the caches are for the first of the two.
    """
    warm, first, second = (supply.take(subject.sas) for _ in range(3))
    with contextlib.suppress(ExperimentError):
        subject.replace([], warm)
        subject.replace([sa.id for sa in warm], [])
    tasks = (("write", [], first), ("delete+write", [sa.id for sa in first], second))
    rows = []
    for operation, old, new in tasks:
        row: dict[str, Any] = {
            "backend": subject.name,
            "operation": operation,
            "suite": str(subject.suite),
            "sas": len(new),
        }
        begin = now_ns()
        try:
            subject.replace(old, new)
        except ExperimentError as error:
            rows.append({**row, "ms_per_sa": None, "ok": False, "reason": str(error)})
            return rows
        elapsed_ms = (now_ns() - begin) / 1e6
        rows.append({**row, "ms_per_sa": elapsed_ms / len(new), "ok": True, "reason": None})
    with contextlib.suppress(ExperimentError):
        subject.replace([sa.id for sa in second], [])
    return rows


def suite_of_this_kernel() -> str:
    """Return the first suite of `SUITES` that the kernel has, else the first."""
    from protocol.ipsec.backend import IpsecError
    from protocol.ipsec.model import Suite
    from protocol.xfrm.backends import check_kernel

    for name in SUITES:
        try:
            check_kernel(None, Suite(name))
        except IpsecError:
            continue
        return name
    return SUITES[0]


def main(argument: str) -> int:
    """Run the task and print its rows as JSON."""
    from protocol.core.errors import LocalError

    task = json.loads(argument)
    suite = suite_of_this_kernel()
    subjects, rows = [], []
    for name in task["backends"]:
        try:
            subjects.append(Subject(name, task["batch"], suite))
        except LocalError as error:
            rows += [
                {
                    "backend": name,
                    "operation": operation,
                    "suite": suite,
                    "repetition": 0,
                    "sas": 0,
                    "ms_per_sa": None,
                    "ok": False,
                    "reason": str(error),
                }
                for operation in ("write", "delete+write")
            ]
    rows += rounds(subjects, Supply(suite, task["seed"]), task["rounds"], task["seed"])
    for subject in subjects:
        subject.close()
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
