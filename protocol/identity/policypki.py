"""Makes the authority of a domain policy, and signs policies: for testbeds, exercises and tests.

`testbed pki policy` is its command line. Layout, beside that of `protocol.identity.pki`::

    DIRECTORY/policy/authority/ca.pem, ca.key (0600), crl.pem; signer.pem, signer.key (0600),
                     policy.signed
    DIRECTORY/devices/NAME/policy-authority.pem, policy.signed
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from protocol.core.errors import LocalError
from protocol.identity.files import read_file, read_private
from protocol.identity.pki import VALID_DAYS, Authority, key_pem, write_file
from protocol.identity.signed import PURPOSE, sign

FOLDER = "policy"
SIGNED = "policy.signed"
ANCHOR = "policy-authority.pem"


class PolicyAuthority:
    """Who says what a domain keeps to: a CA of its own, and one signer it certified.

    Attributes:
        authority: the CA, the anchor that devices are configured with.
        signer: certificate of the key that signs.
    """

    def __init__(
        self, authority: Authority, signer: x509.Certificate, key: Ed25519PrivateKey
    ) -> None:
        self.authority = authority
        self.signer = signer
        self._key = key

    @classmethod
    def create(
        cls,
        name: str,
        *,
        authority: Authority | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        purpose: x509.ObjectIdentifier = PURPOSE,
    ) -> PolicyAuthority:
        """Make one; with an ``authority`` or a ``purpose`` the bad ones that tests need."""
        now = datetime.now(tz=UTC)
        end = not_after or now + timedelta(days=VALID_DAYS)
        start = not_before or min(now, end) - timedelta(hours=1)
        issuer = authority or Authority.create(name, not_before=start, not_after=end)
        key = Ed25519PrivateKey.generate()
        return cls(issuer, issuer.certify_signer(key.public_key(), purpose, start, end), key)

    @classmethod
    def read(cls, directory: Path) -> PolicyAuthority:
        """Read what `write` wrote."""
        key = load_pem_private_key(read_private(directory / "signer.key"), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise LocalError(f"{directory / 'signer.key'}: not an Ed25519 key")
        signer = x509.load_pem_x509_certificate(read_file(directory / "signer.pem"))
        return cls(Authority.read(directory / "authority"), signer, key)

    def write(self, directory: Path) -> None:
        """Write keys and certificates."""
        self.authority.write(directory / "authority")
        write_file(directory / "signer.pem", self.signer.public_bytes(Encoding.PEM))
        write_file(directory / "signer.key", key_pem(self._key), private=True)

    def sign(self, content: bytes) -> bytes:
        """Return the signed document."""
        return sign(content, self.signer, self._key)

    @property
    def name(self) -> str:
        """Common name of the CA."""
        names = self.authority.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value)


def distribute(directory: Path, content: bytes, receivers: list[str] | None = None) -> list[Path]:
    """Sign a policy and give it to the devices of a coalition; return their files.

    The authority is made the first time.

    Args:
        directory: of the coalition (`protocol.identity.pki.make_coalition`).
        content: canonical bytes of the policy.
        receivers: names of the devices that get it, all if None.

    Raises:
        LocalError: the directory holds no coalition, or a file cannot be used.
    """
    devices = directory / "devices"
    if not devices.is_dir():
        raise LocalError(f"{directory}: no coalition (make one with 'testbed pki make')")
    folder = directory / FOLDER
    if not folder.exists():
        PolicyAuthority.create("policy").write(folder)
    authority = PolicyAuthority.read(folder)
    document = authority.sign(content)
    anchor = authority.authority.certificate.public_bytes(Encoding.PEM)
    write_file(folder / SIGNED, document)
    written = []
    for name in sorted(path.name for path in devices.iterdir()) if receivers is None else receivers:
        if not (devices / name).is_dir():
            raise LocalError(f"{directory}: no device {name}")
        write_file(devices / name / ANCHOR, anchor)
        write_file(devices / name / SIGNED, document)
        written.append(devices / name / SIGNED)
    return written
