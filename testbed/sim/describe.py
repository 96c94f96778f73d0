"""A datagram in a few words, for the reader of a trace."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address

from protocol.core.errors import DecodeError
from protocol.identity import PROTOCOL_MIKE, envelope
from protocol.mike.change import Change
from protocol.mike.messages import (
    DECODERS,
    Fragment,
    Handover,
    Join,
    Kind,
    Path,
    Repair,
    Status,
    Tree,
)
from protocol.mike.rekeying import Page, Rekey


def describe(payload: bytes) -> str:
    """Return what MIKE says in it; an empty text for any other datagram."""
    try:
        outer = envelope.decode(payload)
        if outer.protocol != PROTOCOL_MIKE:
            return ""
        message = DECODERS[Kind(outer.kind)](outer.body)
    except (DecodeError, ValueError, KeyError):
        return ""
    match message:
        case Join():
            return f"JOIN highest={message.highest}"
        case Tree():
            content = message.announcement
            return (
                f"TREE {content.epoch} after {content.previous.number} term={message.term}"
                f" members={len(content.tree)} sponsors={_names(content.sponsors)}"
                f" granted={_names(who for who, _ in content.nonces)}"
                f"{' complete' if message.confirmation else ''}"
            )
        case Change():
            return (
                f"CHANGE {message.epoch} after {message.previous.number} term={message.term}"
                f" pieces={len(message.pieces)} sponsors={_names(message.sponsors)}"
                f" granted={_names(who for who, _ in message.nonces)}"
                f"{' complete' if message.confirmation else ''}"
            )
        case Rekey():
            decided = message.announcement
            return (
                f"REKEY {decided.epoch} after {decided.previous.number} term={message.term}"
                f" members={decided.members} removed={_names(decided.removed)}"
                f" added={_names(who for who, _ in decided.added)}"
                f" granted={_names(who for who, _ in decided.nonces)} wraps={len(message.wraps)}"
            )
        case Page():
            last = message.start + len(message.entries)
            return f"PAGE {message.start} to {last} of {message.roster.hex()[:16]}"
        case Path():
            return f"PATH {message.epoch} keys={len(message.keys)}"
        case Status():
            return f"STATUS {message.epoch} term={message.term} members={message.members}"
        case Repair():
            if message.missing:
                return f"REPAIR of {message.message.hex()} missing={message.missing:b}"
            return f"REPAIR {message.wanted} has={message.held}"
        case Fragment():
            part = f"{message.index + 1}/{message.count}"
            return f"FRAGMENT {part} of {message.kind.name} {message.message.hex()}"
        case Handover():
            return f"HANDOVER {message.epoch} to={message.successor} term={message.term}"


def _names(addresses: Iterable[IPv6Address]) -> str:
    """Return the last groups of addresses, which tell devices apart."""
    return ",".join(str(address).rpartition(":")[2] for address in addresses) or "-"
