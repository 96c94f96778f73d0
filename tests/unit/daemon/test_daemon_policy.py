"""The domain policy from files: verified, held against our settings; the newer counts."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from click.testing import CliRunner

from protocol.core.errors import LocalError
from protocol.daemon.config import IdentitySection, PolicySection
from protocol.daemon.policyfile import CACHED, load_policy
from protocol.identity.pki import DeviceSpec, make_coalition
from protocol.identity.policypki import PolicyAuthority
from protocol.idp.config import IdpConfig, SaMode
from protocol.idp.policy import DomainPolicy
from protocol.ipsec.model import Suite
from testbed.commands.pki import pki
from tests.support.fakelink import SA_GROUP

CONFIG = IdpConfig(sa_group=SA_GROUP)
SOURCE = """
domain = "exercise"
version = {version}
suites = ["aes-gcm-128", "aes-gcm-256"]
sa_modes = ["per-sender"]
unicast = ["group"]
key_bits_min = 128
sa_lifetime_min_s = 600
sa_lifetime_max_s = 86400
sa_lifetime_min_bytes = 1_000_000_000
sa_lifetime_max_bytes = 1_000_000_000_000
hello_interval_min_ms = 500
hello_interval_max_ms = 5000
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_coalition(
        tmp_path / "pki",
        [DeviceSpec(f"d{n}", "alpha", IPv6Address(f"2001:db8:b::{n}")) for n in (1, 2)],
    )
    return tmp_path / "pki"


def sign(directory: Path, version: int, *options: str) -> str:
    source = directory.parent / "policy.toml"
    source.write_text(SOURCE.format(version=version))
    done = CliRunner().invoke(pki, ["policy", str(source), str(directory), *options])
    assert done.exit_code == 0, done.output
    return done.output


def sections(directory: Path) -> tuple[PolicySection, IdentitySection]:
    device = directory / "devices" / "d1"
    cache = directory.parent / "cache"
    cache.mkdir(exist_ok=True)
    identity = IdentitySection(
        device / "device.pem", device / "device.key", device / "anchors", device / "peers",
        None, 30_000, cache,
    )  # fmt: skip
    return PolicySection(device / "policy.signed", device / "policy-authority.pem"), identity


def now_ns() -> int:
    import time

    return time.time_ns()


def load(directory: Path, config: IdpConfig = CONFIG) -> tuple[int, list[str]]:
    section, identity = sections(directory)
    own, notices = load_policy(section, identity, config, now_ns())
    assert own is not None
    return own.policy.version, notices


def test_the_command_signs_for_every_device(directory: Path) -> None:
    assert len(sign(directory, 1).splitlines()) == 2
    assert load(directory) == (1, [])
    made = DomainPolicy.from_table(tomllib.loads(SOURCE.format(version=1)))
    assert made.version == 1
    # The authority stays; a later version may go to one device first.
    assert sign(directory, 2, "--to", "d1").splitlines() == [
        str(directory / "devices" / "d1" / "policy.signed")
    ]
    assert load(directory) == (2, [])
    for name in ("authority/ca.key", "signer.key"):
        assert (directory / "policy" / name).stat().st_mode & 0o777 == 0o600


def test_a_bad_source_is_named_in_one_line(directory: Path) -> None:
    source = directory.parent / "policy.toml"
    for text, reason in (
        ("version = 1", "domain: missing"),
        ("version = ", "policy.toml: "),
        (SOURCE.format(version=-1), "version: -1 is not"),
    ):
        source.write_text(text)
        done = CliRunner().invoke(pki, ["policy", str(source), str(directory)])
        assert done.exit_code == 1
        assert reason in done.output
        assert done.output.count("\n") == 1
    source.write_text(SOURCE.format(version=1))
    done = CliRunner().invoke(pki, ["policy", str(source), str(directory.parent)])
    assert (done.exit_code, "no coalition" in done.output) == (1, True)
    done = CliRunner().invoke(pki, ["policy", str(source), str(directory), "--to", "d9"])
    assert (done.exit_code, "no device d9" in done.output) == (1, True)


def test_our_settings_must_keep_it(directory: Path) -> None:
    sign(directory, 1)
    weak = IdpConfig(
        sa_group=SA_GROUP, suite=Suite.TDES_SHA1, sa_mode=SaMode.PAPER, hello_interval_ms=300
    )
    with pytest.raises(LocalError) as error:
        load(directory, weak)
    assert str(error.value) == (
        "domain policy 1 of 'exercise' forbids"
        " [ipsec] suite: 3des-sha1 is not among aes-gcm-128, aes-gcm-256;"
        " [ipsec] sa_mode: paper is not among per-sender;"
        " [idp] hello_interval_ms: 300 is not between 500 and 5000"
    )
    with pytest.raises(LocalError, match="sa_lifetime_s: 60 is not between 600 and 86400"):
        load(directory, replace(CONFIG, sa_lifetime_s=60))


def test_a_file_that_is_no_policy_stops_us(directory: Path) -> None:
    sign(directory, 1)
    section, identity = sections(directory)
    good = section.file.read_bytes()
    stranger = PolicyAuthority.create("policy")
    made = DomainPolicy.from_table(tomllib.loads(SOURCE.format(version=9)))
    for document, reason in (
        (b"junk", "not a policy of our authority: content at byte"),
        (good[:-1], "not a policy of our authority: signature at byte"),
        (stranger.sign(made.encode()), "not signed by the 'policy CA' we trust"),
    ):
        section.file.write_bytes(document)
        with pytest.raises(LocalError, match=reason):
            load(directory)
    section.file.unlink()
    with pytest.raises(LocalError, match="No such file"):
        load(directory)
    section.file.write_bytes(good)
    section.authority.write_bytes(identity.certificate.read_bytes())
    with pytest.raises(LocalError, match="is not a CA's"):
        load(directory)


def test_the_newer_of_file_and_cache_counts(directory: Path) -> None:
    sign(directory, 1)
    authority = PolicyAuthority.read(directory / "policy")
    table = tomllib.loads(SOURCE.format(version=3))
    cached = sections(directory)[1].cache
    assert cached is not None

    def adopt(**changes: object) -> None:
        made = DomainPolicy.from_table(table | changes)
        (cached / CACHED).write_bytes(authority.sign(made.encode()))

    adopt()
    assert load(directory) == (3, [])
    sign(directory, 4)
    assert load(directory) == (4, [])
    adopt(version=5, domain="other")
    assert load(directory) == (4, [])
    adopt(version=5, hello_interval_max_ms=600)
    version, notices = load(directory)
    assert (version, len(notices)) == (4, 1)
    (cached / CACHED).write_bytes(b"junk")
    version, notices = load(directory)
    assert version == 4
    assert "left out" in notices[0]


def test_no_section_no_policy(directory: Path) -> None:
    _, identity = sections(directory)
    assert load_policy(None, identity, CONFIG, now_ns()) == (None, [])
