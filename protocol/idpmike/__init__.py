"""The local interface between idpd and miked of one device: JOIN, LEAVE, RESTORE, and the status.

Datagrams on ::1, authenticated with HMAC-SHA-256 under a key per direction. `LocalLink` makes them
reliable. Normative description: docs/local-interface.md.
"""

from protocol.idpmike.link import CHANNEL, TIMER, LocalLink
from protocol.idpmike.messages import (
    Credential,
    CredentialKind,
    EpochId,
    Frame,
    FromIdp,
    GroupStatus,
    LinkOpened,
    Reliable,
    Resync,
    Side,
    Signal,
    SignalAck,
    SignalKind,
    Standing,
    StatusAck,
    decode,
    direction_key,
    encode,
)

__all__ = [
    "CHANNEL",
    "TIMER",
    "Credential",
    "CredentialKind",
    "EpochId",
    "Frame",
    "FromIdp",
    "GroupStatus",
    "LinkOpened",
    "LocalLink",
    "Reliable",
    "Resync",
    "Side",
    "Signal",
    "SignalAck",
    "SignalKind",
    "Standing",
    "StatusAck",
    "decode",
    "direction_key",
    "encode",
]
