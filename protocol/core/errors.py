"""Errors sorted by who is at fault."""

from __future__ import annotations


class ProtocolError(Exception):
    """Base of everything the protocol layer raises on purpose."""


class LocalError(ProtocolError):
    """We, or our configuration, asked for something that is not allowed."""


class PeerError(ProtocolError):
    """A peer's message broke a rule; it is counted under its rule and dropped.

    Attributes:
        rule: the rule's id, e.g. ``IDP-7`` or ``MIKE-12`` (tables in docs/idp.md, docs/mike.md).
        reason: what was wrong, for the log and for ``status``; no key material.
    """

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(f"{rule}: {reason}")
        self.rule = rule
        self.reason = reason


class DecodeError(PeerError):
    """The bytes are not a message: the one and only error a decoder raises.

    Attributes:
        field: the field being read.
        offset: where in the input, in bytes.
    """

    def __init__(self, field: str, offset: int, reason: str, rule: str = "WIRE-1") -> None:
        super().__init__(rule, f"{field} at byte {offset}: {reason}")
        self.field = field
        self.offset = offset
