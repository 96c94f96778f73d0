"""Who we are, whom we trust, and the signed envelope around every black-side message.

Engines need only the names below. Certificates are read by `protocol.identity.certificates` and
made by `protocol.identity.pki`; neither is imported here, because X.509 is needed once at start-up
and its import is dear under emulation.
"""

from protocol.identity.envelope import BODY_MAX, BODY_RECOMMENDED, PROTOCOL_IDP, PROTOCOL_MIKE
from protocol.identity.identity import Identity, Opened, RefusedError, UnknownCertificateError
from protocol.identity.known import CrlEntry, KnownDevice, Peer, ValidityWindow

__all__ = [
    "BODY_MAX",
    "BODY_RECOMMENDED",
    "PROTOCOL_IDP",
    "PROTOCOL_MIKE",
    "CrlEntry",
    "Identity",
    "KnownDevice",
    "Opened",
    "Peer",
    "RefusedError",
    "UnknownCertificateError",
    "ValidityWindow",
]
