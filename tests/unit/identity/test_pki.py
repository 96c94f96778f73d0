"""The coalition's PKI on disk: layout, modes, refusals."""

from __future__ import annotations

import stat
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from protocol.core.errors import LocalError
from protocol.identity.certificates import load_identity
from protocol.identity.files import load_secret
from protocol.identity.pki import DeviceSpec, make_coalition

D1 = DeviceSpec("d1", "alpha", IPv6Address("2001:db8:b::1"))
D2 = DeviceSpec("d2", "beta", IPv6Address("2001:db8:b::2"))


def tree(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def test_layout_and_modes(tmp_path: Path) -> None:
    coalition = make_coalition(tmp_path / "sub" / "pki", [D1, D2])
    device = ["anchors/alpha.pem", "anchors/beta.pem", "crl/alpha.pem", "crl/beta.pem"]
    device += ["device.key", "device.pem", "local.secret", "peers/d1.pem", "peers/d2.pem"]
    expected = [f"authorities/{n}/{f}" for n in ("alpha", "beta") for f in ("ca.key", "ca.pem")]
    expected += [f"authorities/{n}/crl.pem" for n in ("alpha", "beta")]
    expected += [f"devices/{d}/{f}" for d in ("d1", "d2") for f in device]
    assert tree(coalition.directory) == sorted(expected)
    for path in coalition.directory.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.suffix in (".key", ".secret"):
            assert mode == 0o600, path
    assert coalition.devices() == ["d1", "d2"]
    assert coalition.nations() == ["alpha", "beta"]
    assert list(tmp_path.joinpath("sub").iterdir()) == [coalition.directory]


def test_every_device_can_be_loaded_and_has_its_own_secret(tmp_path: Path) -> None:
    specs = [DeviceSpec(f"d{i}", "alpha", IPv6Address(i)) for i in range(2, 6)]
    coalition = make_coalition(tmp_path / "pki", specs)
    secrets = set()
    for spec in specs:
        files = coalition.files(spec.name)
        identity, notices = load_identity(files.identity_files(), spec.address)
        assert notices == []
        assert identity.me.name == spec.name
        assert len(identity.trusted_peers()) == len(specs) - 1
        secrets.add(load_secret(files.local_secret))
    assert len(secrets) == len(specs)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    coalition = make_coalition(tmp_path / "pki", [D1])
    before = coalition.files("d1").key.read_bytes()
    with pytest.raises(LocalError, match="exists already"):
        make_coalition(tmp_path / "pki", [D1, D2])
    assert coalition.files("d1").key.read_bytes() == before
    (tmp_path / "empty").mkdir()
    make_coalition(tmp_path / "empty", [D1])
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="exists already"):
        make_coalition(tmp_path / "file", [D1])
    with pytest.raises(LocalError, match="file/pki: "):
        make_coalition(tmp_path / "file" / "pki", [D1])


@pytest.mark.parametrize(
    ("devices", "error"),
    [
        ([], "no device"),
        ([D1, DeviceSpec("d1", "beta", D2.address)], "'d1' is given twice"),
        ([D1, DeviceSpec("d2", "beta", D1.address)], "is given twice"),
        ([DeviceSpec("../d1", "alpha", D1.address)], "device name"),
        ([DeviceSpec("d1", "al/pha", D1.address)], "nation name"),
        ([DeviceSpec("", "alpha", D1.address)], "device name"),
        ([DeviceSpec("x" * 64, "alpha", D1.address)], "device name"),
    ],
)
def test_bad_devices_are_refused_before_anything_is_written(
    tmp_path: Path, devices: list[DeviceSpec], error: str
) -> None:
    with pytest.raises(LocalError, match=error):
        make_coalition(tmp_path / "pki", devices)
    assert list(tmp_path.iterdir()) == []


def test_secret_files(tmp_path: Path) -> None:
    path = tmp_path / "local.secret"
    path.write_text("ab" * 32 + "\n")
    path.chmod(0o644)
    with pytest.raises(LocalError, match="mode 0644, must be 0600"):
        load_secret(path)
    path.chmod(0o600)
    assert load_secret(path) == b"\xab" * 32
    for bad in ("ab" * 31, "zz" * 32, "", "é"):
        path.write_text(bad)
        with pytest.raises(LocalError, match="not 32 bytes in hexadecimal") as error:
            load_secret(path)
        assert "ab" not in str(error.value).replace(str(path), "")
    tmp_path.joinpath("folder").mkdir()
    with pytest.raises(LocalError, match="not a regular file"):
        load_secret(tmp_path / "folder")
    path.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(LocalError, match="larger than"):
        load_secret(path)


def test_only_the_authority_marks_a_gateway(tmp_path: Path) -> None:
    leg = DeviceSpec("g1-a", "alpha", IPv6Address("2001:db8:b::f1"), gateway=True)
    coalition = make_coalition(tmp_path / "pki", [D1, leg])
    identity, notices = load_identity(coalition.files("d1").identity_files(), D1.address)
    assert notices == []
    known = identity.peer_by_address(leg.address)
    assert known is not None
    assert known.gateway
    assert not identity.me.gateway
