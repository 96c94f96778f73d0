"""A command for every operation, as the paper's daemons did with ``system("setkey ...")``.

For comparison only. As system(3) does, each command goes through ``/bin/sh -c``. The stand-in for
setkey is ``ip xfrm``; the line goes to ``ip -batch -`` on standard input, because arguments are
readable by every user of the machine (``/proc/PID/cmdline``) and group keys must not be. Reading
back goes through netlink: it is not what is compared.

iproute2 knows SA directions from 6.10 on (Debian 12 has 6.1); with an older one use SAs without.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from protocol.ipsec.backend import (
    DONE,
    AddSa,
    ByteLimit,
    DeletePolicy,
    DeleteSa,
    IpsecError,
    Operation,
    Outcome,
    PutPolicy,
)
from protocol.ipsec.model import (
    ESP,
    SUITES,
    Mode,
    Policy,
    PolicyId,
    SaId,
    SecurityAssociation,
    Selector,
)
from protocol.ipsec.validation import policy_defect, sa_defect
from protocol.xfrm.namespace import in_namespace
from protocol.xfrm.netlink import NetlinkBackend

_ANSWER = "RTNETLINK answers: "
"""What ip prints before the words of an error number."""

_KERNEL_SAID = "Error: "
"""What ip prints before the kernel's extended acknowledgement; also before complaints of its own,
which quote the argument and so may show a key."""

_COMMAND_WAIT_S = 30

_MISSING = "no command ip: install iproute2, or --sa-backend netlink"

_NOT_FOUND = 127
"""What the shell returns for a command that is not there."""


class CommandBackend:
    """An `IpsecBackend` that has the shell start ``ip`` once per operation.

    Args:
        namespace: nsfs path or process id of another network namespace, or None.
        shell: as system(3) does; False executes ``ip`` itself, to tell the shell's share.
    """

    name = "command"
    kernel = True

    def __init__(self, namespace: str | int | None = None, *, shell: bool = True) -> None:
        self._namespace = namespace
        self._command = ["/bin/sh", "-c", "ip -batch -"] if shell else ["ip", "-batch", "-"]
        self._reader = NetlinkBackend(namespace)
        self._errors = {os.strerror(number): number for number in errno.errorcode}

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Perform the operations in order, a process each."""
        with in_namespace(self._namespace):
            return [self._apply_one(operation) for operation in operations]

    def _apply_one(self, operation: Operation) -> Outcome:
        defect = ""
        match operation:
            case AddSa(sa, limit):
                line, defect = f"xfrm state add {_sa(sa)}{_limit(limit)}", sa_defect(sa)
            case DeleteSa(sa_id):
                line = f"xfrm state delete {_sa_id(sa_id)}"
                defect = "" if sa_id.protocol == ESP else "only ESP"
            case PutPolicy(policy):
                line, defect = f"xfrm policy update {_policy(policy)}", policy_defect(policy)
            case DeletePolicy(policy_id):
                line = f"xfrm policy delete {_policy_id(policy_id)}"
        return Outcome(errno.EINVAL, defect) if defect else self._run(line)

    def _run(self, line: str) -> Outcome:
        import subprocess

        try:
            # The key is in the input only: neither arguments, result nor exceptions repeat it.
            done = subprocess.run(
                self._command,
                input=line + "\n",
                capture_output=True,
                text=True,
                timeout=_COMMAND_WAIT_S,
                env={**os.environ, "LC_ALL": "C"},
                check=False,
            )
        except FileNotFoundError:
            raise IpsecError(_MISSING) from None
        except subprocess.TimeoutExpired:
            raise IpsecError(f"ip xfrm did not end within {_COMMAND_WAIT_S} s") from None
        if done.returncode == 0:
            return DONE
        if done.returncode == _NOT_FOUND:
            raise IpsecError(_MISSING)
        for said in done.stderr.splitlines():
            if said.startswith(_ANSWER):
                text = said.removeprefix(_ANSWER)
                return Outcome(self._errors.get(text, errno.EIO), text)
            if said.startswith(_KERNEL_SAID) and '"' not in said:
                return Outcome(errno.EINVAL, said.removeprefix(_KERNEL_SAID).rstrip("."))
        hint = "; SA directions need iproute2 6.10" if " dir " in line and "state" in line else ""
        return Outcome(errno.EINVAL, f"ip does not understand the operation{hint}")

    def dump_sas(self) -> list[SecurityAssociation]:
        """Return every SA, read by netlink."""
        return self._reader.dump_sas()

    def dump_policies(self) -> list[Policy]:
        """Return every policy, read by netlink."""
        return self._reader.dump_policies()

    def close(self) -> None:
        """Close the reader's socket; idempotent."""
        self._reader.close()


def _sa_id(sa_id: SaId) -> str:
    return f"dst {sa_id.destination} proto esp spi {sa_id.spi:#x}"


def _sa(sa: SecurityAssociation) -> str:
    """Return the words of ``ip xfrm state add``; they hold the key."""
    sizes = SUITES[sa.suite]
    words = [f"src {sa.source} {_sa_id(sa.id)} reqid {sa.reqid} mode {sa.mode}"]
    words.append(f"replay-window {sa.replay_window}")
    flags = ["esn"] * sa.esn + ["af-unspec"] * (sa.mode is Mode.TUNNEL)
    if flags:
        words.append(f"flag {' '.join(flags)}")
    if sa.if_id is not None:
        words.append(f"if_id {sa.if_id:#x}")
    if sa.direction is not None:
        words.append(f"dir {sa.direction}")
    key = f"0x{sa.key.encryption.hex()}"
    if sizes.aead is not None:
        words.append(f"aead {sizes.aead} {key} {sizes.icv_bits}")
    else:
        mac = f"0x{sa.key.authentication.hex()} {sizes.icv_bits}"
        words.append(f"enc {sizes.encryption} {key} auth-trunc {sizes.authentication} {mac}")
    return " ".join(words)


def _limit(limit: ByteLimit | None) -> str:
    return "" if limit is None else f" limit byte-soft {limit.soft} limit byte-hard {limit.hard}"


def _selector(selector: Selector) -> str:
    upper = f" proto {selector.upper_protocol}" if selector.upper_protocol else ""
    return f"src {selector.source} dst {selector.destination}{upper}"


def _policy_id(policy_id: PolicyId) -> str:
    if_id = "" if policy_id.if_id is None else f" if_id {policy_id.if_id:#x}"
    return f"{_selector(policy_id.selector)} dir {policy_id.direction}{if_id}"


def _policy(policy: Policy) -> str:
    words = f"{_policy_id(policy.id)} priority {policy.priority}"
    if policy.template_mode is None:
        return f"{words} action block"
    spi = f" spi {policy.template_spi:#x}" if policy.template_spi else ""
    return (
        f"{words} tmpl src {policy.template_source} dst {policy.template_destination} "
        f"proto esp{spi} reqid {policy.reqid} mode {policy.template_mode}"
    )
