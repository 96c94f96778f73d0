"""Keeps what gateways say inside the partition in which they say it.

Red prefixes must not be read on the black wire, so a part is encrypted under a key that every
member of the partition's epoch can derive and nobody else; who said it is the envelope's business.
Each instance of a gateway has a key of its own, so that its counter is a nonce (RFC 5116).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.core.errors import PeerError
from protocol.core.wire import Reader, Writer
from protocol.gateway.messages import RULE_SYNTAX
from protocol.idpmike import EpochId
from protocol.ipsec.schedule import expander

LABEL = b"idpmike v1 gateway table"
KEY_LENGTH = 32
NONCE_LENGTH = 12
TAG_LENGTH = 8
RULE_KEY = "GATE-3"


@dataclass(frozen=True, slots=True)
class Sealed:
    """The protected body of a message.

    Attributes:
        epoch: under whose key it is.
        number: of the message in the sender's instance: the nonce.
        ciphertext: with its tag.
    """

    epoch: EpochId
    number: int
    ciphertext: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        writer.push_u64(self.epoch.number, "epoch_number")
        writer.push_bytes(self.epoch.tag, TAG_LENGTH, "epoch_tag")
        writer.push_u64(self.number, "number")
        writer.push_bytes(self.ciphertext)
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Sealed:
        """Read a body.

        Raises:
            DecodeError: it is none (rule GATE-1).
        """
        reader = Reader(body, RULE_SYNTAX)
        number = reader.pull_u64("epoch_number")
        tag = reader.pull_bytes(TAG_LENGTH, "epoch_tag")
        count = reader.pull_u64("number")
        return cls(EpochId(number, tag), count, reader.pull_rest("ciphertext"))


def _cipher(group_key: bytes, fingerprint: bytes, startup_wall_ns: int) -> AESGCM:
    info = LABEL + fingerprint + startup_wall_ns.to_bytes(8, "big")
    return AESGCM(expander(group_key)(info, KEY_LENGTH))


def seal(
    plain: bytes,
    epoch: EpochId,
    group_key: bytes,
    sender: tuple[bytes, int],
    number: int,
) -> bytes:
    """Protect a part under an epoch's key.

    Args:
        plain: the part.
        epoch: names the key.
        group_key: of the epoch.
        sender: our certificate's fingerprint and our start-up time-stamp.
        number: never used before under them.
    """
    nonce = number.to_bytes(NONCE_LENGTH, "big")
    ciphertext = _cipher(group_key, *sender).encrypt(nonce, plain, None)
    return Sealed(epoch, number, ciphertext).encode()


def unseal(sealed: Sealed, group_key: bytes, sender: tuple[bytes, int]) -> bytes:
    """Return the part.

    Raises:
        PeerError: it was not sealed by this sender under this key (rule GATE-3).
    """
    nonce = sealed.number.to_bytes(NONCE_LENGTH, "big")
    try:
        return _cipher(group_key, *sender).decrypt(nonce, sealed.ciphertext, None)
    except InvalidTag:
        raise PeerError(RULE_KEY, "it does not open under the epoch's key") from None
