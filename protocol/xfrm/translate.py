"""Between our model and the kernel's structures: an SA or a policy as struct plus attributes.

What the kernel holds but the model cannot express (outer IPv4, AH, BEET, marks, other algorithms,
SAs that wait for a key manager) becomes a `ForeignSa` or `ForeignPolicy` with the reason, so that a
dump of a machine with other users' IPsec never fails, and never passes for ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from protocol.core.errors import DecodeError, LocalError
from protocol.ipsec.model import (
    ANY_ADDRESS,
    ESP,
    SPI_MIN,
    SUITES,
    KeyMaterial,
    Mode,
    Policy,
    PolicyDirection,
    PolicyId,
    SaDirection,
    SaId,
    SecurityAssociation,
    Selector,
    Suite,
)
from protocol.ipsec.validation import policy_defect, sa_defect
from protocol.xfrm.attributes import (
    XFRM_SA_DIR_IN,
    XFRM_SA_DIR_OUT,
    XFRMA_ALG_AEAD,
    XFRMA_ALG_AUTH_TRUNC,
    XFRMA_ALG_CRYPT,
    XFRMA_ENCAP,
    XFRMA_IF_ID,
    XFRMA_MARK,
    XFRMA_OFFLOAD_DEV,
    XFRMA_REPLAY_ESN_VAL,
    XFRMA_SA_DIR,
    XFRMA_TMPL,
    Algorithm,
    ReplayEsn,
    pack_algorithm,
    pack_algorithm_bits,
    pack_attribute,
    pack_replay_esn,
    pack_u32,
    read_algorithm,
    read_algorithm_bits,
    read_replay_esn,
    read_u8,
    read_u32,
)
from protocol.xfrm.structs import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    XFRM_MODE_TRANSPORT,
    XFRM_MODE_TUNNEL,
    XFRM_POLICY_ALLOW,
    XFRM_POLICY_BLOCK,
    XFRM_POLICY_FWD,
    XFRM_POLICY_IN,
    XFRM_POLICY_OUT,
    XFRM_STATE_AF_UNSPEC,
    XFRM_STATE_ESN,
    XFRM_USER_TMPL_SIZE,
    XfrmId,
    XfrmLifetimeCfg,
    XfrmSelector,
    XfrmUserpolicyId,
    XfrmUserpolicyInfo,
    XfrmUsersaId,
    XfrmUsersaInfo,
    XfrmUserTmpl,
)

Attributes = dict[int, tuple[int, bytes]]

LEGACY_WINDOW_MAX = 32
"""Packets in the bitmap of struct xfrm_replay_state; more needs XFRMA_REPLAY_ESN_VAL."""

_MODES = {Mode.TRANSPORT: XFRM_MODE_TRANSPORT, Mode.TUNNEL: XFRM_MODE_TUNNEL}
_MODE_NAMES = {number: mode for mode, number in _MODES.items()}
_SA_DIRECTIONS = {SaDirection.IN: XFRM_SA_DIR_IN, SaDirection.OUT: XFRM_SA_DIR_OUT}
_SA_DIRECTION_NAMES = {number: direction for direction, number in _SA_DIRECTIONS.items()}
_POLICY_DIRECTIONS = {
    PolicyDirection.IN: XFRM_POLICY_IN,
    PolicyDirection.OUT: XFRM_POLICY_OUT,
    PolicyDirection.FORWARD: XFRM_POLICY_FWD,
}
_POLICY_DIRECTION_NAMES = {number: name for name, number in _POLICY_DIRECTIONS.items()}
_AEAD_SUITES = {
    (sizes.aead, sizes.encryption_key_length, sizes.icv_bits): suite
    for suite, sizes in SUITES.items()
    if sizes.aead is not None
}
_PAIR_SUITES = {
    (
        sizes.encryption,
        sizes.encryption_key_length,
        sizes.authentication,
        sizes.authentication_key_length,
        sizes.icv_bits,
    ): suite
    for suite, sizes in SUITES.items()
    if sizes.aead is None
}
_BEYOND_MODEL = {XFRMA_ENCAP: "encap", XFRMA_MARK: "mark", XFRMA_OFFLOAD_DEV: "offload"}


@dataclass(frozen=True, slots=True)
class ForeignSa:
    """An SA in the kernel that our model does not express.

    Attributes:
        spi: its SPI, 0 while the kernel waits for a key manager.
        protocol: IP protocol number.
        reason: why it is foreign.
    """

    spi: int
    protocol: int
    reason: str


@dataclass(frozen=True, slots=True)
class ForeignPolicy:
    """A policy in the kernel that our model does not express.

    Attributes:
        direction: the kernel's number, 3 and above for sockets' own policies.
        reason: why it is foreign.
    """

    direction: int
    reason: str


def sa_to_kernel(
    sa: SecurityAssociation, lifetime: XfrmLifetimeCfg
) -> tuple[XfrmUsersaInfo, list[bytes]]:
    """Return the structure and the packed attributes of an SA.

    Raises:
        LocalError: the SA breaks a rule of `sa_defect`.
    """
    defect = sa_defect(sa)
    if defect:
        raise LocalError(defect)
    wide_window = sa.esn or sa.replay_window > LEGACY_WINDOW_MAX
    transport = sa.mode is Mode.TRANSPORT
    info = XfrmUsersaInfo(
        # A tunnel carries both address families. Without the flag, copy_from_user_state
        # (net/xfrm/xfrm_user.c) puts the outer family there, and inner IPv4 finds no state.
        sel=XfrmSelector(family=AF_INET6 if transport else AF_UNSPEC),
        id=XfrmId(sa.destination.packed, sa.spi, ESP),
        saddr=sa.source.packed,
        lft=lifetime,
        reqid=sa.reqid,
        mode=_MODES[sa.mode],
        # verify_replay (net/xfrm/xfrm_user.c) refuses both windows at once.
        replay_window=0 if wide_window else sa.replay_window,
        flags=(XFRM_STATE_ESN if sa.esn else 0) | (0 if transport else XFRM_STATE_AF_UNSPEC),
    )
    attributes = _pack_algorithms(sa)
    if wide_window:
        state = pack_replay_esn(ReplayEsn(replay_window=sa.replay_window))
        attributes.append(pack_attribute(XFRMA_REPLAY_ESN_VAL, state))
    if sa.if_id is not None:
        attributes.append(pack_attribute(XFRMA_IF_ID, pack_u32(sa.if_id)))
    if sa.direction is not None:
        attributes.append(pack_attribute(XFRMA_SA_DIR, bytes((_SA_DIRECTIONS[sa.direction],))))
    return info, attributes


def _pack_algorithms(sa: SecurityAssociation) -> list[bytes]:
    sizes = SUITES[sa.suite]
    if sizes.aead is not None:
        aead = Algorithm(sizes.aead, sa.key.encryption, sizes.icv_bits)
        return [pack_attribute(XFRMA_ALG_AEAD, pack_algorithm_bits(aead))]
    assert sizes.encryption is not None
    assert sizes.authentication is not None
    cipher = Algorithm(sizes.encryption, sa.key.encryption)
    mac = Algorithm(sizes.authentication, sa.key.authentication, sizes.icv_bits)
    return [
        pack_attribute(XFRMA_ALG_CRYPT, pack_algorithm(cipher)),
        pack_attribute(XFRMA_ALG_AUTH_TRUNC, pack_algorithm_bits(mac)),
    ]


def sa_from_kernel(info: XfrmUsersaInfo, attributes: Attributes) -> SecurityAssociation | ForeignSa:
    """Return the SA of a structure and its attributes.

    Raises:
        DecodeError: an attribute is not what its type says.
    """
    algorithms = _read_algorithms(attributes)
    window, wide = info.replay_window, attributes.get(XFRMA_REPLAY_ESN_VAL)
    if wide is not None:
        window = read_replay_esn(wide).replay_window
    if_id = _read_if_id(attributes)
    direction = _read_sa_direction(attributes)
    reason = _foreign_sa_reason(info, attributes)
    if not reason and algorithms is None:
        reason = "algorithms that are no suite of ours"
    if reason or algorithms is None:
        return ForeignSa(info.id.spi, info.id.proto, reason)
    suite, key = algorithms
    return SecurityAssociation(
        source=IPv6Address(info.saddr),
        destination=IPv6Address(info.id.daddr),
        spi=info.id.spi,
        suite=suite,
        key=key,
        mode=_MODE_NAMES[info.mode],
        reqid=info.reqid,
        if_id=if_id,
        direction=direction,
        replay_window=window,
        esn=bool(info.flags & XFRM_STATE_ESN),
    )


def _foreign_sa_reason(info: XfrmUsersaInfo, attributes: Attributes) -> str:
    if info.family != AF_INET6:
        return f"address family {info.family}"
    if info.id.proto != ESP:
        return f"protocol {info.id.proto}"
    if info.id.spi < SPI_MIN:
        return "no SPI yet, or a reserved one"
    if info.mode not in _MODE_NAMES:
        return f"mode {info.mode}"
    if info.sel._replace(family=AF_UNSPEC, user=0) != XfrmSelector():
        return "a selector"
    return next((word for kind, word in _BEYOND_MODEL.items() if kind in attributes), "")


def _read_algorithms(attributes: Attributes) -> tuple[Suite, KeyMaterial] | None:
    aead, cipher, mac = (
        attributes.get(kind) for kind in (XFRMA_ALG_AEAD, XFRMA_ALG_CRYPT, XFRMA_ALG_AUTH_TRUNC)
    )
    if aead is not None:
        one = read_algorithm_bits("XFRMA_ALG_AEAD", aead)
        suite = _AEAD_SUITES.get((one.name, len(one.key), one.bits))
        return None if suite is None else (suite, KeyMaterial(one.key))
    if cipher is None or mac is None:
        return None
    enc = read_algorithm("XFRMA_ALG_CRYPT", cipher)
    auth = read_algorithm_bits("XFRMA_ALG_AUTH_TRUNC", mac)
    pair = (enc.name, len(enc.key), auth.name, len(auth.key), auth.bits)
    suite = _PAIR_SUITES.get(pair)
    return None if suite is None else (suite, KeyMaterial(enc.key, auth.key))


def _read_if_id(attributes: Attributes) -> int | None:
    found = attributes.get(XFRMA_IF_ID)
    return None if found is None else read_u32("XFRMA_IF_ID", found) or None


def _read_sa_direction(attributes: Attributes) -> SaDirection | None:
    found = attributes.get(XFRMA_SA_DIR)
    if found is None:
        return None
    number = read_u8("XFRMA_SA_DIR", found)
    if number not in _SA_DIRECTION_NAMES:
        raise DecodeError("XFRMA_SA_DIR", found[0], f"no direction {number}")
    return _SA_DIRECTION_NAMES[number]


def said_to_kernel(sa_id: SaId) -> XfrmUsersaId:
    """Return how DELSA and GETSA name the SA."""
    if not 0 <= sa_id.spi <= 0xFFFFFFFF or not 0 <= sa_id.protocol <= 0xFF:
        raise LocalError(f"SPI {sa_id.spi:#x} or protocol {sa_id.protocol} does not fit")
    return XfrmUsersaId(sa_id.destination.packed, sa_id.spi, AF_INET6, sa_id.protocol)


def said_from_kernel(raw: XfrmUsersaId) -> SaId | ForeignSa:
    """Return the SA's identity."""
    if raw.family != AF_INET6:
        return ForeignSa(raw.spi, raw.proto, f"address family {raw.family}")
    return SaId(IPv6Address(raw.daddr), raw.spi, raw.proto)


def policy_to_kernel(policy: Policy) -> tuple[XfrmUserpolicyInfo, list[bytes]]:
    """Return the structure and the packed attributes of a policy.

    Raises:
        LocalError: the policy breaks a rule of `policy_defect`.
    """
    defect = policy_defect(policy)
    if defect:
        raise LocalError(defect)
    info = XfrmUserpolicyInfo(
        sel=_selector_to_kernel(policy.selector),
        priority=policy.priority,
        dir=_POLICY_DIRECTIONS[policy.direction],
        action=XFRM_POLICY_BLOCK if policy.template_mode is None else XFRM_POLICY_ALLOW,
    )
    attributes = []
    if policy.template_mode is not None:
        template = XfrmUserTmpl(
            id=XfrmId(policy.template_destination.packed, policy.template_spi, ESP),
            saddr=policy.template_source.packed,
            reqid=policy.reqid,
            mode=_MODES[policy.template_mode],
        )
        attributes.append(pack_attribute(XFRMA_TMPL, template.pack()))
    if policy.if_id is not None:
        attributes.append(pack_attribute(XFRMA_IF_ID, pack_u32(policy.if_id)))
    return info, attributes


def policy_from_kernel(info: XfrmUserpolicyInfo, attributes: Attributes) -> Policy | ForeignPolicy:
    """Return the policy of a structure and its attributes.

    Raises:
        DecodeError: an attribute is not what its type says.
    """
    templates = _read_templates(attributes)
    if_id = _read_if_id(attributes)
    identity = _policy_identity(info.sel, info.dir, if_id, attributes)
    if isinstance(identity, ForeignPolicy):
        return identity
    discard = info.action == XFRM_POLICY_BLOCK
    if discard and not templates:
        return Policy(
            selector=identity.selector,
            direction=identity.direction,
            template_source=ANY_ADDRESS,
            template_destination=ANY_ADDRESS,
            template_mode=None,
            if_id=if_id,
            priority=info.priority,
        )
    if discard or info.action != XFRM_POLICY_ALLOW or len(templates) != 1:
        reason = f"action {info.action} with {len(templates)} templates"
        return ForeignPolicy(info.dir, reason)
    template = templates[0]
    expressible = (
        template.id.proto == ESP
        and template.family == AF_INET6
        and template.mode in _MODE_NAMES
        and not template.optional
    )
    if not expressible:
        return ForeignPolicy(info.dir, "a template that is no ESP over IPv6 of ours")
    return Policy(
        selector=identity.selector,
        direction=identity.direction,
        template_source=IPv6Address(template.saddr),
        template_destination=IPv6Address(template.id.daddr),
        template_spi=template.id.spi,
        template_mode=_MODE_NAMES[template.mode],
        reqid=template.reqid,
        if_id=if_id,
        priority=info.priority,
    )


def policyid_to_kernel(policy_id: PolicyId) -> tuple[XfrmUserpolicyId, list[bytes]]:
    """Return how DELPOLICY and GETPOLICY name the policy."""
    defect = policy_defect(
        Policy(
            policy_id.selector,
            policy_id.direction,
            ANY_ADDRESS,
            ANY_ADDRESS,
            if_id=policy_id.if_id,
        )
    )
    if defect:
        raise LocalError(defect)
    direction = _POLICY_DIRECTIONS[policy_id.direction]
    raw = XfrmUserpolicyId(_selector_to_kernel(policy_id.selector), 0, direction)
    if policy_id.if_id is None:
        return raw, []
    return raw, [pack_attribute(XFRMA_IF_ID, pack_u32(policy_id.if_id))]


def policyid_from_kernel(raw: XfrmUserpolicyId, attributes: Attributes) -> PolicyId | ForeignPolicy:
    """Return the policy's identity."""
    return _policy_identity(raw.sel, raw.dir, _read_if_id(attributes), attributes)


def _policy_identity(
    sel: XfrmSelector, direction: int, if_id: int | None, attributes: Attributes
) -> PolicyId | ForeignPolicy:
    if direction not in _POLICY_DIRECTION_NAMES:
        return ForeignPolicy(direction, "a socket's own policy")
    if sel.family not in (AF_INET, AF_INET6):
        return ForeignPolicy(direction, f"address family {sel.family}")
    plain = sel._replace(daddr=bytes(16), saddr=bytes(16), prefixlen_d=0, prefixlen_s=0, proto=0)
    if plain._replace(family=AF_UNSPEC) != XfrmSelector():
        return ForeignPolicy(direction, "a selector with ports, interface or user")
    for kind, word in _BEYOND_MODEL.items():
        if kind in attributes:
            return ForeignPolicy(direction, word)
    try:
        source = _network(sel.family, sel.saddr, sel.prefixlen_s)
        destination = _network(sel.family, sel.daddr, sel.prefixlen_d)
    except ValueError:
        return ForeignPolicy(direction, "a selector with host bits")
    return PolicyId(
        Selector(source, destination, sel.proto), _POLICY_DIRECTION_NAMES[direction], if_id
    )


def _network(family: int, address: bytes, length: int) -> IPv4Network | IPv6Network:
    """Return the network of an ``xfrm_address_t``; ValueError for host bits."""
    if family == AF_INET6:
        return IPv6Network((address, length))
    if any(address[4:]):
        raise ValueError
    return IPv4Network((address[:4], length))


def _selector_to_kernel(selector: Selector) -> XfrmSelector:
    return XfrmSelector(
        daddr=selector.destination.network_address.packed.ljust(16, b"\0"),
        saddr=selector.source.network_address.packed.ljust(16, b"\0"),
        family=AF_INET6 if selector.destination.version == 6 else AF_INET,
        prefixlen_d=selector.destination.prefixlen,
        prefixlen_s=selector.source.prefixlen,
        proto=selector.upper_protocol,
    )


def _read_templates(attributes: Attributes) -> list[XfrmUserTmpl]:
    offset, payload = attributes.get(XFRMA_TMPL, (0, b""))
    if len(payload) % XFRM_USER_TMPL_SIZE:
        raise DecodeError("XFRMA_TMPL", offset, f"{len(payload)} bytes are no whole templates")
    return [
        XfrmUserTmpl.unpack(payload, start) for start in range(0, len(payload), XFRM_USER_TMPL_SIZE)
    ]
