"""Addresses as a device meets them again and again: one object and one text for each.

Python compares, hashes and prints addresses in Python. That two names of an object are equal is
found out at once, and a text that was made once need not be made for every report and status.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network

ADDRESSES_KEPT = 1024
"""Of each kind; a domain has fewer."""


@lru_cache(ADDRESSES_KEPT)
def address_of(packed: bytes) -> IPv6Address:
    """Return the address with these 16 bytes."""
    return IPv6Address(packed)


@lru_cache(ADDRESSES_KEPT)
def address_said(text: str) -> IPv6Address:
    """Return the address that is written so.

    Raises:
        ValueError: it is none.
    """
    return address_of(IPv6Address(text).packed)


@lru_cache(ADDRESSES_KEPT)
def text_of(address: IPv6Address | IPv6Network | IPv4Network) -> str:
    """Return how an address or a network is written."""
    return str(address)
