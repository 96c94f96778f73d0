"""Choosing a backend, and what the command backend shows to others: no key."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from protocol.ipsec.backend import AddSa, DeleteSa, IpsecError, Outcome
from protocol.ipsec.model import SaDirection, SaId, Suite
from protocol.xfrm import backends, command, pfkey_codec
from protocol.xfrm.backends import make_backend
from protocol.xfrm.command import CommandBackend
from protocol.xfrm.messages import Ack
from protocol.xfrm.namespace import in_namespace
from tests.support.xfrm import GROUP, make_sa


class ProbeSocket:
    """Answers the probe as a kernel of the test's choice."""

    ack = Ack()

    def __init__(self, namespace: object) -> None:
        pass

    def request(self, messages: object) -> list[Ack]:
        return [self.ack]

    def close(self) -> None:
        pass


def test_memory_needs_nothing() -> None:
    assert make_backend("memory").name == "memory"


def test_an_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(IpsecError, match="netlink, command, pfkey, memory"):
        make_backend("setkey")


@pytest.mark.parametrize(
    ("ack", "words"),
    [
        (Ack(errno.EPROTONOSUPPORT, "Requested type not found"), "kernel has no ESP"),
        (Ack(errno.ENOSYS, "Requested AEAD algorithm not found"), "ESP with aes-gcm-128"),
        (Ack(errno.EPERM), "run as root"),
    ],
)
def test_what_a_kernel_lacks_is_one_line_with_a_cure(
    ack: Ack, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProbeSocket, "ack", ack)
    monkeypatch.setattr(backends, "XfrmSocket", ProbeSocket)
    with pytest.raises(IpsecError, match=words) as caught:
        make_backend("netlink")
    text = str(caught.value)
    assert "\n" not in text
    assert "run as root" in text or "--env vm" in text


def test_a_missing_namespace_is_named() -> None:
    with pytest.raises(IpsecError, match="is it gone"), in_namespace("does/not/exist"):
        pass


FAKE_IP = """#!/bin/sh
echo "$@" >> {folder}/argv
cat >> {folder}/stdin
cat {folder}/stderr >&2 2>/dev/null && exit 2
exit 0
"""


@pytest.fixture
def fake_ip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "ip"
    program.write_text(FAKE_IP.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(command, "NetlinkBackend", lambda _: None)
    return tmp_path


def test_keys_go_by_standard_input_and_never_as_arguments(fake_ip: Path) -> None:
    sa = make_sa(0x1001, Suite.TDES_SHA1)
    assert CommandBackend().apply([AddSa(sa), DeleteSa(sa.id)]) == [Outcome(), Outcome()]
    arguments, given = (fake_ip / "argv").read_text(), (fake_ip / "stdin").read_text()
    assert arguments == "-batch -\n-batch -\n"
    assert sa.key.encryption.hex() in given
    assert given.count("\n") == 2


@pytest.mark.parametrize(
    ("said", "number", "text"),
    [
        ("RTNETLINK answers: File exists", errno.EEXIST, "File exists"),
        ("RTNETLINK answers: No such process", errno.ESRCH, "No such process"),
        ("Error: Requested type not found.", errno.EINVAL, "Requested type not found"),
    ],
)
def test_what_ip_says_becomes_an_outcome(fake_ip: Path, said: str, number: int, text: str) -> None:
    (fake_ip / "stderr").write_text(f"{said}\nCommand failed -:1\n")
    assert CommandBackend().apply([DeleteSa(SaId(GROUP, 0x1001))]) == [Outcome(number, text)]


def test_a_complaint_that_quotes_an_argument_is_not_repeated(fake_ip: Path) -> None:
    sa = make_sa(0x1001, direction=SaDirection.IN)
    (fake_ip / "stderr").write_text(f'Error: argument "0x{sa.key.encryption.hex()}" is wrong\n')
    (outcome,) = CommandBackend().apply([AddSa(sa)])
    assert outcome.errno == errno.EINVAL
    assert sa.key.encryption.hex() not in outcome.text
    assert "iproute2 6.10" in outcome.text


def test_without_ip(fake_ip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fake_ip / "nothing"))
    with pytest.raises(IpsecError, match="install iproute2"):
        CommandBackend().apply([DeleteSa(SaId(GROUP, 0x1001))])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": Suite.AES_GCM_128}, "no AEAD"),
        ({"suite": Suite.AES_CBC_SHA256}, "96 bits"),
        ({"suite": Suite.TDES_SHA1, "if_id": 5}, "interface id"),
        ({"suite": Suite.TDES_SHA1, "direction": SaDirection.IN}, "direction"),
        ({"suite": Suite.TDES_SHA1, "replay_window": 64}, "window"),
    ],
)
def test_what_pf_key_cannot_say_names_the_cure(changes: dict[str, object], words: str) -> None:
    reason = pfkey_codec.inexpressible(make_sa(0x1001, **changes))
    assert words in reason
    assert "--sa-backend netlink" in reason
