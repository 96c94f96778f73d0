"""A device's identity, from the files that its TOML file names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.core.engine import Instant
from protocol.core.errors import LocalError
from protocol.daemon import trustcache
from protocol.daemon.config import DeviceConfig
from protocol.daemon.logfile import LogFile
from protocol.identity.identity import Identity

if TYPE_CHECKING:
    from protocol.identity.certificates import IdentityFiles


def identity_files(config: DeviceConfig) -> IdentityFiles:
    """Return where a device's certificates, keys and revocation lists lie."""
    from protocol.identity.certificates import IdentityFiles

    section = config.identity
    return IdentityFiles(
        section.certificate,
        section.key,
        section.anchors,
        section.peers,
        section.revocations,
        section.freshness_ms,
        section.cache,
    )


def read_identity(config: DeviceConfig, now: Instant, log: LogFile) -> Identity:
    """Read certificates and keys; say so in the log if others will refuse ours.

    Raises:
        LocalError: a file is missing or unusable, or the certificate is another device's.
    """
    from protocol.identity.certificates import load_identity

    device, section = config.device, config.identity
    if section.cache is not None:
        trustcache.prepare(section.cache)
    identity, notices = load_identity(identity_files(config), device.address, now.wall_ns)
    if (identity.me.name, identity.me.nation) != (device.name, device.nation):
        raise LocalError(
            f"{section.certificate}: certificate is for {identity.me.name} of"
            f" {identity.me.nation}, [device] says {device.name} of {device.nation}"
        )
    for notice in notices:
        log.write("warning", notice)
    problem = identity.own_problem(now)
    if problem is not None:
        log.write("error", f"other devices will refuse us: {problem}")
    return identity
