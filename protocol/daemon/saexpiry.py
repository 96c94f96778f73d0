"""Hears the kernel say that an SA has carried the bytes of its limit."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable

from protocol.ipsec.model import SaId
from protocol.xfrm.messages import ExpireSa
from protocol.xfrm.socket import XFRMNLGRP_EXPIRE, XfrmOverrunError, XfrmSocket


class SaExpiryWatch:
    """Listens to XFRM_MSG_EXPIRE (net/xfrm/xfrm_user.c, ``xfrm_exp_state_notify``).

    Args:
        on_expired: called with the SA and whether the kernel has removed it.

    Attributes:
        counters: announcements that the kernel could not deliver. A soft limit among them is not
            repeated; the hard one is announced for itself.

    Raises:
        IpsecError: the kernel has no XFRM, or does not let us listen.
    """

    def __init__(self, on_expired: Callable[[SaId, bool], None]) -> None:
        self.counters: Counter[str] = Counter()
        self._on_expired = on_expired
        self._socket = XfrmSocket(None, (XFRMNLGRP_EXPIRE,))

    def fileno(self) -> int:
        """Return the descriptor, for the loop."""
        return self._socket.fileno()

    def readable(self) -> None:
        """Read what was announced."""
        try:
            frames = self._socket.receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except XfrmOverrunError:
            self.counters["sa_expiry.lost"] += 1
            return
        for frame in frames:
            match frame.message:
                case ExpireSa(SaId() as sa_id, hard):
                    self._on_expired(sa_id, hard)

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()
