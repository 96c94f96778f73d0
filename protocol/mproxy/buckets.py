"""Token buckets: how many records a second a host, and a LAN, may have taken in (MPROXY-6)."""

from __future__ import annotations

from collections import OrderedDict

from protocol.core.buckets import Bucket
from protocol.mproxy.messages import Address

HOSTS_MAX = 256
"""Hosts remembered; one that is forgotten starts with a full bucket, and the LAN's bucket holds."""


class LanBuckets:
    """The buckets of one interface and family."""

    __slots__ = ("_hosts", "_lan", "_per_host")

    def __init__(self, per_s: int, host_per_s: int) -> None:
        self._lan = Bucket(per_s, 0)
        self._per_host = host_per_s
        self._hosts: OrderedDict[Address, Bucket] = OrderedDict()

    def host_allows(self, host: Address, now_mono_ns: int) -> bool:
        """Take a token of the host."""
        bucket = self._hosts.get(host)
        if bucket is None:
            if len(self._hosts) >= HOSTS_MAX:
                self._hosts.popitem(last=False)
            bucket = self._hosts[host] = Bucket(self._per_host, now_mono_ns)
        else:
            self._hosts.move_to_end(host)
        return bucket.take(now_mono_ns)

    def lan_allows(self, now_mono_ns: int) -> bool:
        """Take a token of the LAN."""
        return self._lan.take(now_mono_ns)
