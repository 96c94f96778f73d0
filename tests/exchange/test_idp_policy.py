"""The domain policy: compared in every hello, refused with the difference, adopted if newer.

IDP-58 to IDP-60. Devices have each other's certificates.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from protocol.core.engine import DatagramReceived
from protocol.identity import PROTOCOL_IDP
from protocol.identity.envelope import decode
from protocol.identity.policypki import PolicyAuthority
from protocol.idp.config import IdpConfig
from protocol.idp.documents import Request, Subject, split
from protocol.idp.events import TrustReread
from protocol.idp.lighthello import HEADER
from protocol.idp.messages import Hello, MessageKind
from protocol.idp.policy import DomainPolicy
from protocol.idp.policykeeper import OwnPolicy
from protocol.idpmike import Standing
from protocol.ipsec.model import Suite
from tests.support.coalition import (
    certificate,
    make_identity,
    own_policy,
    policy,
    policy_authority,
)
from tests.support.fakelink import SA_GROUP, Device, Network
from tests.support.identities import address

A, B = address(0), address(1)
CONFIG = IdpConfig(sa_group=SA_GROUP, news_delay_ms=0)


def network(
    *policies: DomainPolicy | OwnPolicy | None, configs: dict[int, IdpConfig] | None = None
) -> Network:
    """Devices that know each other, each with its policy, not yet started."""
    everybody = [certificate(index) for index in range(len(policies))]
    identities = [make_identity(index, knows=everybody) for index in range(len(policies))]
    made = Network(len(policies), CONFIG, identities=identities)
    for device, given in zip(made.devices, policies, strict=True):
        device.policy = own_policy(given) if isinstance(given, DomainPolicy) else given
        device.config = (configs or {}).get(device.index, device.config)
        device.new_engine()
    return made


def start(made: Network, ms: float = 3000) -> None:
    for device in made.devices:
        device.start()
    made.run(ms)


def up(device: Device) -> list[str]:
    return [peer["name"] for peer in device.status()["peers"] if peer["state"] == "up"]


def version(device: Device) -> int:
    return int(device.status()["policy"]["version"])


def reasons(device: Device, rule: str = "IDP-58") -> list[str]:
    return [entry["reason"] for entry in device.status()["refused"] if entry["rule"] == rule]


def lines(device: Device, rule: str = "IDP-58") -> int:
    return sum(f"({rule})" in log.text for log in device.logs)


def questions(device: Device) -> int:
    signed = [e.payload for e in device.sent if not e.payload.startswith(HEADER)]
    found = [decode(payload) for payload in signed]
    requests = [Request.decode(e.body) for e in found if e.kind == MessageKind.REQUEST]
    return sum(request.subject is Subject.POLICY for request in requests)


def test_devices_with_one_policy_go_together() -> None:
    made = network(policy(), policy(), policy())
    start(made)
    for device in made.devices:
        assert len(up(device)) == 2
        assert device.status()["policy"]["suites"] == ["aes-gcm-128", "aes-gcm-256"]
        assert device.told_mike == []
        assert questions(device) == 0


def test_without_a_policy_only_with_those_without_one() -> None:
    made = network(policy(), None, None)
    start(made)
    a, b, c = made.devices
    assert (up(a), up(b), up(c)) == ([], ["d3"], ["d2"])
    assert set(reasons(a)) == {"it keeps no domain policy, we keep domain policy 3"}
    assert reasons(b) == ["it keeps domain policy 3, we keep none"]
    assert [questions(device) for device in made.devices] == [0, 0, 0]
    assert b.told_mike == [Standing(A, "it keeps domain policy 3, we keep none", 3)]
    assert ("LEAVE", A) in b.signals


def test_two_policies_of_one_version_refuse_each_other_field_by_field() -> None:
    made = network(
        policy(), policy(suites=["aes-gcm-128", "3des-sha1"], hello_interval_max_ms=1500)
    )
    start(made)
    a, b = made.devices
    assert (up(a), up(b)) == ([], [])
    difference = (
        "its domain policy differs: suites aes-gcm-128+3des-sha1, ours aes-gcm-128+aes-gcm-256;"
        " hello_interval_max_ms 1500, ours 2000"
    )
    assert reasons(a) == [difference]
    assert reasons(a, "IDP-60") == [difference]
    assert a.counter("IDP-58") >= 2
    made.run(50_000)
    assert lines(a) == 1, "one line a minute"
    assert a.counter("IDP-58") > 40
    assert questions(a) == 1, "what it knows it does not ask again"
    assert a.counter("idp.policy_verified") == 1


def test_a_newer_policy_is_adopted_while_running_and_nobody_leaves() -> None:
    made = network(policy(), policy(), policy())
    start(made)
    newer = own_policy(policy(version=4, key_bits_min=112))
    for device in made.devices:
        device.signals.clear()
    a, b, c = made.devices
    a.feed(TrustReread(policy=newer))
    made.run(4000)
    for device in made.devices:
        assert version(device) == 4
        assert len(up(device)) == 2
        assert device.signals == []
        assert device.told_mike == []
    assert b.kept == {("policy", b"\0"): newer.document}
    assert a.kept == {}
    assert any("adopted domain policy 4 from d1: version 4, ours 3" in log.text for log in c.logs)


def test_a_device_with_an_older_policy_adopts_ours_and_comes_in() -> None:
    made = network(policy(version=4), policy(version=4), policy(version=2))
    start(made, 4000)
    c = made.devices[2]
    assert version(c) == 4
    for device in made.devices:
        assert len(up(device)) == 2
    # Barred at first, then admitted, in MIKE, too.
    a = made.devices[0]
    standings = [told for told in a.told_mike if isinstance(told, Standing)]
    assert [bool(told.reason) for told in standings] == [True, False]
    assert standings[0].peer == c.address


def test_a_downgrade_is_refused() -> None:
    """C cannot keep to the newer policy; A and B never take the older one (IDP-60)."""
    weak = replace(CONFIG, suite=Suite.TDES_SHA1)
    old = policy(version=2, suites=["aes-gcm-128", "3des-sha1"], key_bits_min=112)
    made = network(policy(), policy(), old, configs={2: weak})
    start(made)
    a, _b, c = made.devices
    assert [version(device) for device in made.devices] == [3, 3, 2]
    assert (up(a), up(c)) == (["d2"], [])
    assert any("version 2, ours 3; suites aes-gcm-128+3des-sha1" in each for each in reasons(a))
    assert (
        "(not adopted, we would break it: [ipsec] suite 3des-sha1 is not among aes-gcm-128,"
        " aes-gcm-256)" in reasons(c)[0]
    )


def test_a_device_that_comes_to_break_a_new_policy_is_excluded_after_the_dead_interval() -> None:
    slow = replace(CONFIG, hello_interval_ms=2000)
    made = network(policy(), policy(), policy(), configs={2: slow})
    start(made)
    a, b, c = made.devices
    a.signals.clear()
    a.feed(TrustReread(policy=own_policy(policy(version=4, hello_interval_max_ms=1000))))
    made.run(2000)
    assert sorted(up(a)) == ["d2", "d3"], "it has its dead interval to come round"
    assert a.told_mike == []
    made.run(10_000)
    assert (up(a), up(b), up(c)) == (["d2"], ["d1"], [])
    assert ("LEAVE", c.address) in a.signals
    assert [told.peer for told in a.told_mike if isinstance(told, Standing)] == [c.address]
    assert "[idp] hello_interval_ms 2000 is not between 500 and 1000" in reasons(c)[0]


def test_a_mike_that_starts_anew_is_told_whom_not_to_act_upon() -> None:
    made = network(policy(), policy(suites=["aes-gcm-256"]))
    start(made)
    a = made.devices[0]
    a.told_mike.clear()
    a.restart_mike()
    made.run(100)
    assert [told.peer for told in a.told_mike if isinstance(told, Standing)] == [B]


# Bad documents. B announces a policy and answers with something else.

FOREIGN = PolicyAuthority.create(
    "policy",
    not_before=policy_authority().signer.not_valid_before_utc,
    not_after=policy_authority().signer.not_valid_after_utc,
)
NEWER = policy(version=9)
GOOD = policy_authority().sign(NEWER.encode())
CLIENT_AUTH = policy_authority(ExtendedKeyUsageOID.CLIENT_AUTH)


@pytest.mark.parametrize(
    ("document", "rule", "reason"),
    [
        (b"junk", "IDP-59", "content at byte 2: length 27253 above the maximum of 4096"),
        (GOOD[:-1], "IDP-59", "signature at byte"),
        (GOOD + b"\0", "IDP-59", "trailing bytes"),
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "IDP-59", "the signature does not verify"),
        (
            policy_authority().sign(b"\x01" + NEWER.encode()[1:]),
            "IDP-50",
            "unknown format 1",
        ),
        (policy_authority().sign(NEWER.encode() + b"\0"), "IDP-50", "trailing bytes"),
        (FOREIGN.sign(NEWER.encode()), "IDP-59", "not signed by the 'policy CA' we trust"),
        (
            policy_authority(nation="beta").sign(NEWER.encode()),
            "IDP-59",
            "issued by 'beta CA' which is not among the trust anchors",
        ),
        (policy_authority(expired=True).sign(NEWER.encode()), "IDP-59", "not signed by"),
        (policy_authority().sign(policy(version=8).encode()), "IDP-59", "not the policy that its"),
        (
            policy_authority().sign(policy(version=9, key_bits_min=0).encode()),
            "IDP-59",
            "not the policy that its hello names",
        ),
    ],
)
def test_document_that_does_not_count(document: bytes, rule: str, reason: str) -> None:
    made = network(policy(), replace(own_policy(NEWER), document=document))
    start(made)
    a = made.devices[0]
    assert version(a) == 3
    assert up(a) == []
    assert a.kept == {}
    assert a.counter(rule) == 1
    assert reason in reasons(a, rule)[0]
    assert "its document is refused: " in reasons(a)[0]
    made.run(20_000)
    assert a.counter(rule) == 1, "not asked for again, so not verified again"


def test_signer_for_another_purpose_or_out_of_date() -> None:
    anchor = CLIENT_AUTH.authority
    made = network(
        own_policy(policy(), trusted=anchor, signer=CLIENT_AUTH), own_policy(NEWER, CLIENT_AUTH)
    )
    start(made)
    a = made.devices[0]
    assert reasons(a, "IDP-59") == ["'policy signer' may not sign policies"]
    stale = policy_authority(expired=True)
    made = network(
        own_policy(policy(), trusted=stale.authority),
        own_policy(NEWER, policy_authority(expired=True)),
    )
    start(made)
    assert "expired on" in reasons(made.devices[0], "IDP-59")[0]


def test_a_device_certificate_cannot_sign_a_policy() -> None:
    """Not even where the policy's authority is a nation's CA."""
    from protocol.identity.signed import sign
    from tests.support.coalition import authority
    from tests.support.identities import signing_key

    document = sign(NEWER.encode(), certificate(1), signing_key(1))
    trusted = authority("beta")
    made = network(
        own_policy(policy(), trusted=trusted), replace(own_policy(NEWER), document=document)
    )
    start(made)
    a = made.devices[0]
    assert version(a) == 3
    assert reasons(a, "IDP-59") == ["'d2' may not sign policies"]


def test_a_hello_that_breaks_the_policy_it_names() -> None:
    made = network(policy(), policy(hello_interval_max_ms=4000))
    a, b = made.devices
    slow = replace(CONFIG, hello_interval_ms=3000)
    b.config = slow
    b.new_engine()
    # B claims A's policy; its own settings would not let it start with it.
    b.engine._exchange._policy._own = own_policy(policy())
    said = Hello(3000, CONFIG.dead_factor, policy_version=3, policy_digest=policy().digest())
    b.engine._exchange.own_hello = lambda *_: said  # type: ignore[method-assign]
    start(made, 4000)
    assert up(a) == []
    assert reasons(a) == ["it announces a hello interval of 3000 ms, the policy allows 500 to 2000"]


def test_a_large_group_does_not_slow_hellos_beyond_the_policy() -> None:
    tight = replace(CONFIG, hello_budget_per_s=1)
    made = network(policy(), policy(), policy(), policy(), configs=dict.fromkeys(range(4), tight))
    start(made, 20_000)
    for device in made.devices:
        assert len(up(device)) == 3
        entry = device.engine._table.entries()[0]
        assert entry.hello_interval_ms == 2000


def test_another_domain_is_never_adopted() -> None:
    made = network(policy(), policy(domain="other", version=9))
    start(made)
    a = made.devices[0]
    assert version(a) == 3
    assert reasons(a)[0].startswith("its domain policy differs: domain other, ours exercise")


def test_unasked_documents_are_not_verified() -> None:
    made = network(policy(), policy())
    start(made)
    a = made.devices[0]
    identity = make_identity(1)
    identity.begin(made.now.wall_ns)
    for _ in range(100):
        for part in split(GOOD):
            body = part.encode()
            payload = identity.seal(PROTOCOL_IDP, MessageKind.POLICY, body, made.now)
            a.feed(DatagramReceived("group", B, payload))
    assert a.counter("IDP-54") == 100
    assert a.counter("idp.policy_verified") == 0
    assert lines(a, "IDP-54") == 1
    assert version(a) == 3
