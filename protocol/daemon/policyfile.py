"""The domain policy of a device: read at the start, verified, and held against its own settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.core.errors import LocalError, PeerError
from protocol.identity.files import read_file
from protocol.idp.config import IdpConfig
from protocol.idp.policy import DomainPolicy
from protocol.idp.policykeeper import OwnPolicy

if TYPE_CHECKING:
    from protocol.daemon.config import IdentitySection, PolicySection

CACHED = "policy-00.der"
"""The policy that was adopted from another device, in the cache of what is learned."""


def load_policy(
    section: PolicySection | None, identity: IdentitySection, idp: IdpConfig, wall_ns: int
) -> tuple[OwnPolicy | None, list[str]]:
    """Read the policy that the device keeps to: its file's, or a newer one that it adopted.

    Returns:
        The policy, None without a ``[policy]`` section; and notices about an adopted one that does
        not count any more.

    Raises:
        LocalError: one line: the file is not a policy signed by the authority, or our own settings
            break it (names the fields).
    """
    if section is None:
        return None, []
    from protocol.identity.certificates import load_anchor_file
    from protocol.identity.signed import open_signed

    anchor = load_anchor_file(section.authority)

    def judge(document: bytes, wall_ns: int) -> bytes:
        return open_signed(document, anchor, wall_ns)

    own = _read(section.file, judge, wall_ns)
    notices: list[str] = []
    if identity.cache is not None and (identity.cache / CACHED).exists():
        try:
            adopted = _read(identity.cache / CACHED, judge, wall_ns)
            same = adopted.policy.domain == own.policy.domain
            if same and adopted.policy.version > own.policy.version:
                if not adopted.policy.defects(idp):
                    return adopted, []
                notices.append(f"{identity.cache / CACHED}: broken by our settings, left out")
        except LocalError as error:
            notices.append(f"left out {error}")
    defects = own.policy.defects(idp)
    if defects:
        broken = "; ".join(f"{field}: {text}" for field, text in defects)
        version, domain = own.policy.version, own.policy.domain
        raise LocalError(f"domain policy {version} of '{domain}' forbids {broken}")
    return own, notices


def _read(path: Path, judge: Callable[[bytes, int], bytes], wall_ns: int) -> OwnPolicy:
    """Read one signed policy."""
    document = read_file(path)
    try:
        return OwnPolicy(DomainPolicy.decode(judge(document, wall_ns)), document, judge)
    except PeerError as error:
        raise LocalError(f"{path}: not a policy of our authority: {error.reason}") from None
