"""From a backend's name in a configuration to the backend, or to one line with cause and cure."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from ipaddress import IPv6Address

from protocol.ipsec.backend import IpsecBackend, IpsecError
from protocol.ipsec.memory import MemoryBackend
from protocol.ipsec.model import SUITES, KeyMaterial, SecurityAssociation, Suite
from protocol.xfrm.messages import UpdSa
from protocol.xfrm.socket import XfrmSocket

BACKENDS = ("netlink", "command", "pfkey", "memory")

_DISCARD = IPv6Address("100::1")
"""In the discard-only prefix of RFC 6666: nobody's address."""

_PROBE_SPI = 0xFFFFFFFE


def make_backend(
    name: str, namespace: str | int | None = None, suite: Suite = Suite.AES_GCM_128
) -> IpsecBackend:
    """Return a usable backend.

    Args:
        name: ``netlink``, ``command``, ``pfkey`` or ``memory``.
        namespace: nsfs path or process id of another network namespace, or None for ours.
        suite: the kernel must offer ESP with it.

    Raises:
        IpsecError: an unknown name, or the backend does not work here; names cause and cure.
    """
    if name == "memory":
        return MemoryBackend()
    makers: dict[str, Callable[[str | int | None], IpsecBackend]] = {
        "netlink": _make_netlink,
        "command": _make_command,
        "pfkey": _make_pfkey,
    }
    if name not in makers:
        raise IpsecError(f"no SA backend {name!r}: use one of {', '.join(BACKENDS)}")
    check_kernel(namespace, suite)
    return makers[name](namespace)


def _make_netlink(namespace: str | int | None) -> IpsecBackend:
    from protocol.xfrm.netlink import NetlinkBackend

    return NetlinkBackend(namespace)


def _make_command(namespace: str | int | None) -> IpsecBackend:
    from protocol.xfrm.command import CommandBackend

    return CommandBackend(namespace)


def _make_pfkey(namespace: str | int | None) -> IpsecBackend:
    from protocol.xfrm.pfkey import PfkeyBackend

    return PfkeyBackend(namespace)


def check_kernel(namespace: str | int | None = None, suite: Suite = Suite.AES_GCM_128) -> None:
    """Make sure that the kernel has ESP with this suite and that we may use it; changes nothing.

    The probe updates an SA that does not exist: the kernel builds it with all its algorithms (and
    loads their modules) before it looks for the old one and says ESRCH, and nobody is told.

    Raises:
        IpsecError: names cause and cure.
    """
    sizes = SUITES[suite]
    cipher_key = bytes(range(sizes.encryption_key_length))
    key = KeyMaterial(cipher_key, bytes(range(sizes.authentication_key_length)))
    sa = SecurityAssociation(_DISCARD, _DISCARD, _PROBE_SPI, suite, key)
    probe = XfrmSocket(namespace)
    try:
        (ack,) = probe.request([UpdSa(sa)])
    finally:
        probe.close()
    match ack.errno:
        case 0 | errno.ESRCH:
            return
        case errno.EPERM:
            raise IpsecError("no right to change the kernel's SAD: run as root (CAP_NET_ADMIN)")
        case errno.EPROTONOSUPPORT:
            lack = "ESP"
        case _:
            lack = f"ESP with {suite}"
    words = ack.text or os.strerror(ack.errno)
    raise IpsecError(f"kernel has no {lack} ({words}): run with --env vm, or --sa-backend memory")
