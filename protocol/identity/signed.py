"""Content signed by an authority: what a device believes of the domain policy, and why.

The signer's certificate travels with the content. It counts if the anchor that was configured for
the purpose issued it, and if it is for this purpose by a critical extended key usage, which no
device certificate has: the profile of devices refuses it. So no device can sign a policy, not even
where the anchor is a nation's CA.

Layout, integers big-endian (normative: docs/idp.md section 13)::

    u16 length, content
    u16 length, the signer's certificate, DER
    64          Ed25519 over LABEL and the content
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from protocol.core.errors import PeerError
from protocol.core.wire import Reader, Writer
from protocol.identity.envelope import SIGNATURE_LENGTH
from protocol.identity.profile import (
    MALFORMED,
    UNUSABLE,
    Anchor,
    attribute,
    ed25519_key,
    find_anchor,
    validity_window,
)

LABEL = b"idpmike domain policy v1\x00"
"""Domain separation: the signer's key never signs anything else that starts like this."""

PURPOSE = ObjectIdentifier("2.25.246862146352013817426330121361275304961")
"""Extended key usage of who signs domain policies; made from a UUID (ITU-T X.667)."""

CONTENT_MAX = 4096
SIGNER_MAX = 2048

RULE_SIGNED = "IDP-59"


def open_signed(document: bytes, anchor: Anchor, wall_ns: int | None) -> bytes:
    """Return the content of a document if its authority signed it.

    Args:
        document: untrusted bytes.
        anchor: the only CA whose signers count.
        wall_ns: UTC now; None: validity is not looked at.

    Raises:
        PeerError: not such a document, or not signed by such an authority (rule IDP-59).
    """
    reader = Reader(document, RULE_SIGNED)
    content = reader.pull_vector(CONTENT_MAX, "content")
    der = reader.pull_vector(SIGNER_MAX, "signer")
    signature = reader.pull_bytes(SIGNATURE_LENGTH, "signature")
    reader.finish()
    try:
        signer = x509.load_der_x509_certificate(der)
        problem = _signer_problem(signer, anchor, wall_ns)
        key = ed25519_key(signer)
    except UNUSABLE:
        raise PeerError(RULE_SIGNED, "the signer's certificate is malformed") from None
    if problem is not None:
        raise PeerError(RULE_SIGNED, problem)
    try:
        key.verify(signature, LABEL + content)
    except InvalidSignature:
        raise PeerError(RULE_SIGNED, "the signature does not verify") from None
    return content


def _signer_problem(signer: x509.Certificate, anchor: Anchor, wall_ns: int | None) -> str | None:
    """Say why this certificate's holder may not sign policies, or None."""
    name = attribute(signer.subject, NameOID.COMMON_NAME) or "?"
    found, reason = find_anchor(signer, (anchor,))
    if found is None:
        return f"signer '{name}' {reason}"
    try:
        usage = signer.extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except (x509.ExtensionNotFound, *MALFORMED):
        return f"'{name}' may not sign policies"
    if not usage.digital_signature or usage.key_cert_sign or not purposes.critical:
        return f"'{name}' may not sign policies"
    if list(purposes.value) != [PURPOSE]:
        return f"'{name}' may not sign policies"
    if wall_ns is None:
        return None
    windows = (
        validity_window(f"certificate of '{name}'", signer),
        validity_window(f"certificate of '{anchor.name}'", anchor.certificate),
    )
    return next((text for window in windows if (text := window.problem(wall_ns))), None)


def sign(content: bytes, signer: x509.Certificate, key: Ed25519PrivateKey) -> bytes:
    """Return the document."""
    writer = Writer()
    writer.push_vector(content, CONTENT_MAX, "content")
    writer.push_vector(signer.public_bytes(Encoding.DER), SIGNER_MAX, "signer")
    writer.push_bytes(key.sign(LABEL + content), SIGNATURE_LENGTH, "signature")
    return writer.finish()
