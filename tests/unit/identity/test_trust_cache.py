"""What was learned survives a restart, and what is in the cache is checked like anything else."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from protocol.core.engine import Instant
from protocol.core.errors import LocalError, PeerError
from protocol.daemon import atomicfile
from protocol.daemon.clock import SystemClock
from protocol.daemon.logfile import LogFile
from protocol.daemon.trustcache import FILES_MAX, TrustCache, prepare
from protocol.identity import Identity
from protocol.identity.certificates import IdentityFiles, load_identity, reload_trust
from protocol.identity.pki import Authority, Coalition, DeviceSpec, make_coalition
from protocol.identity.trust import LEARNED_MAX, TrustStore
from protocol.idp.events import DropTrust, KeepTrust
from tests.support.coalition import certificate, der, issue, make_identity

WALL = int(datetime.now(tz=UTC).timestamp() + 3600) * 10**9
"""Later than anything that these tests issue, however long the tests before them took."""
NOW = Instant(0, WALL)
D1 = DeviceSpec("d1", "alpha", IPv6Address("2001:db8:b::1"))
D2 = DeviceSpec("d2", "beta", IPv6Address("2001:db8:b::2"))


@pytest.fixture
def coalition(tmp_path: Path) -> Coalition:
    """D1 does not have D2's certificate, nor any CRL."""
    made = make_coalition(tmp_path / "pki", [D1, D2])
    (made.files("d1").peers / "d2.pem").unlink()
    return made


@pytest.fixture
def cache(tmp_path: Path) -> TrustCache:
    prepare(tmp_path / "cache")
    prepare(tmp_path / "cache")
    return TrustCache(tmp_path / "cache", LogFile(tmp_path / "log", SystemClock(0)))


def files(coalition: Coalition, tmp_path: Path) -> IdentityFiles:
    mine = coalition.files("d1")
    return IdentityFiles(
        mine.certificate, mine.key, mine.anchors, mine.peers, cache=tmp_path / "cache"
    )


def load(coalition: Coalition, tmp_path: Path) -> tuple[Identity, list[str]]:
    return load_identity(files(coalition, tmp_path), wall_ns=WALL)


def store_of(identity: Identity) -> TrustStore:
    assert identity.store is not None
    return identity.store


def names(identity: Identity) -> list[str]:
    return [peer.name for peer in identity.trusted_peers(NOW)]


def crl_der(coalition: Coalition, nation: str) -> bytes:
    pem = (coalition.directory / "authorities" / nation / "crl.pem").read_bytes()
    return x509.load_pem_x509_crl(pem).public_bytes(Encoding.DER)


def test_what_was_learned_is_there_after_a_restart(
    coalition: Coalition, cache: TrustCache, tmp_path: Path
) -> None:
    first, _ = load(coalition, tmp_path)
    assert names(first) == []
    learned = coalition.certificate("d2").public_bytes(Encoding.DER)
    peer = store_of(first).learn((learned,), WALL).peer
    cache.keep(KeepTrust("certificate", peer.fingerprint, learned))
    second, notices = load(coalition, tmp_path)
    assert (names(second), notices) == (["d2"], [])
    # A list that revokes it is kept, too; then the certificate is known and refused.
    coalition.revoke(["d2"])
    crl = crl_der(coalition, "beta")
    item = store_of(second).learn_revocations(crl, WALL)
    assert item is not None
    cache.keep(KeepTrust("revocations", item.issuer_id, crl))
    third, notices = load(coalition, tmp_path)
    assert (names(third), notices) == ([], [])
    assert "revoked by 'beta CA'" in str(third.problem_with(peer.fingerprint, NOW))
    assert store_of(third).revocations[0].version[0] == 2
    cache.drop(DropTrust("revocations", item.issuer_id))
    cache.drop(DropTrust("revocations", item.issuer_id))
    assert names(load(coalition, tmp_path)[0]) == ["d2"]


def test_rubbish_in_the_cache_is_left_out_with_a_notice(
    coalition: Coalition, cache: TrustCache, tmp_path: Path
) -> None:
    cache.keep(KeepTrust("certificate", b"1" * 16, b"junk"))
    cache.keep(KeepTrust("revocations", b"2" * 8, b"junk"))
    stranger = Authority.create("delta").issue(
        DeviceSpec("d9", "delta", D2.address), coalition.certificate("d2").public_key()
    )
    cache.keep(KeepTrust("certificate", b"3" * 16, der(stranger)))
    (tmp_path / "cache" / "certificate-half.new").write_bytes(b"cut short by a crash")
    identity, notices = load(coalition, tmp_path)
    assert names(identity) == []
    assert len(notices) == 3
    assert all(notice.startswith("left out ") for notice in notices)


def test_files_cut_at_every_length_are_left_out(
    coalition: Coalition, cache: TrustCache, tmp_path: Path
) -> None:
    """A power cut at any byte: what is whole counts, what is not is asked for again."""
    learned = coalition.certificate("d2").public_bytes(Encoding.DER)
    for kind, data in (("certificate", learned), ("revocations", crl_der(coalition, "beta"))):
        cache.keep(KeepTrust(kind, b"1" * 8, data))
        (path,) = (tmp_path / "cache").glob(f"{kind}-*")
        for length in range(len(data)):
            path.write_bytes(data[:length])
            identity, notices = load(coalition, tmp_path)
            assert names(identity) == []
            assert len(notices) == 1
        cache.drop(DropTrust(kind, b"1" * 8))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_a_disk_that_refuses_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    prepare(tmp_path / "cache")
    log = LogFile(tmp_path / "log", SystemClock(0))
    cache = TrustCache(tmp_path / "cache", log)
    cache.keep(KeepTrust("revocations", b"1", b"old"))

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(atomicfile.os, call, refuse)
        cache.keep(KeepTrust("revocations", b"1", b"new"))
    (path,) = (tmp_path / "cache").iterdir()
    assert path.read_bytes() == b"old"
    log.close()
    assert f"cannot be written: {os.strerror(number)}" in (tmp_path / "log").read_text()


def test_a_cache_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="file: File exists"):
        prepare(tmp_path / "file")
    log = LogFile(tmp_path / "log", SystemClock(0))
    cache = TrustCache(tmp_path / "nowhere", log)
    cache.keep(KeepTrust("certificate", b"1", b"x"))
    cache.drop(DropTrust("certificate", b"1"))
    TrustCache(None, log).keep(KeepTrust("certificate", b"1", b"x"))
    log.flush()
    assert "cannot be written: No such file" in (tmp_path / "log").read_text()
    full = tmp_path / "full"
    full.mkdir()
    for number in range(FILES_MAX):
        (full / str(number)).touch()
    TrustCache(full, log).keep(KeepTrust("certificate", b"1", b"x"))
    log.flush()
    assert f"more than {FILES_MAX} files" in (tmp_path / "log").read_text()
    assert len(list(full.iterdir())) == FILES_MAX


def test_an_older_file_never_replaces_a_newer_list(coalition: Coalition, tmp_path: Path) -> None:
    prepare(tmp_path / "cache")
    mine = coalition.files("d1")
    (mine.peers / "d2.pem").write_bytes(coalition.certificate("d2").public_bytes(Encoding.PEM))
    older = (coalition.directory / "authorities" / "beta" / "crl.pem").read_bytes()
    identity, _ = load(coalition, tmp_path)
    coalition.revoke(["d2"])
    assert store_of(identity).learn_revocations(crl_der(coalition, "beta"), WALL) is not None
    with_files = IdentityFiles(
        mine.certificate, mine.key, mine.anchors, mine.peers, mine.revocations
    )
    (mine.revocations / "beta.pem").write_bytes(older)
    assert reload_trust(identity, with_files, WALL) == []
    assert names(identity) == []
    assert sorted(item.version[0] for item in store_of(identity).revocations) == [1, 2]
    (mine.revocations / "beta.pem").write_bytes(b"junk")
    with pytest.raises(LocalError, match="not a well-formed PEM CRL"):
        reload_trust(identity, with_files, WALL)
    assert names(identity) == []


def test_an_anchor_that_is_taken_away_takes_its_devices_along(
    coalition: Coalition, tmp_path: Path
) -> None:
    prepare(tmp_path / "cache")
    identity, _ = load(coalition, tmp_path)
    learned = coalition.certificate("d2").public_bytes(Encoding.DER)
    store_of(identity).learn((learned,), WALL)
    identity.trust(store_of(identity).devices())
    assert names(identity) == ["d2"]
    (coalition.files("d1").anchors / "beta.pem").unlink()
    reload_trust(identity, files(coalition, tmp_path), WALL)
    assert names(identity) == []
    assert store_of(identity).learned == {}


def test_learned_certificates_are_bounded() -> None:
    """AUTH-15: the oldest that is not in use gives way."""
    store = store_of(make_identity(0))
    wall_ns = make_identity(1).store.own.known.validity[0].start_wall_ns + 1  # type: ignore[union-attr]
    for index in range(1, LEARNED_MAX + 1):
        store.learn((der(certificate(index)),), wall_ns)
    used = {certificate_address(index) for index in range(1, LEARNED_MAX + 1)}
    with pytest.raises(PeerError, match="AUTH-15: 256 learned certificates are in use"):
        store.learn((der(certificate(300)),), wall_ns, in_use=used)
    store.learn((der(certificate(300)),), wall_ns, in_use=used - {certificate_address(7)})
    assert len(store.learned) == LEARNED_MAX
    assert der(certificate(7)) not in store.learned.values()
    assert der(certificate(300)) in store.learned.values()


def certificate_address(index: int) -> IPv6Address:
    return IPv6Address("2001:db8:b::") + index + 1


def test_one_certificate_has_one_fingerprint() -> None:
    """The byte that no signature covers may not be used to give it another."""
    good = der(certificate(1))
    store = store_of(make_identity(0))
    twisted = good[:-65] + b"\x01" + good[-64:]
    with pytest.raises(PeerError, match="AUTH-13"):
        store.learn((twisted,), None)
    store.learn((good,), None)
    assert issue(1) is not None
