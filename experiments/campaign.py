"""What an experiment is made of: variants, campaigns, and what is drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from experiments.reading import require

MIKE_MODES = ("ka", "kd", "auto")
BACKENDS = ("netlink", "command", "pfkey", "memory")
SA_MODES = ("per-sender", "paper")
CPU_ARRANGEMENTS = ("measured-first", "equal")
METHODS = ("shutdown", "cut")
BLACK_GROUPS = ("any-source", "source-specific")
PROTECTIONS = ("ipsec", "clear-text")
UNICAST = ("off", "group", "psk")
MOMENTS = ("join", "tree", "path", "written", "notice", "active", "deleted")
"""Where the making of an epoch stands when its TM dies (testbed/moments.py)."""

KERNEL_FAULTS = (
    *(f"tm-at-{moment}" for moment in MOMENTS),
    *("sa-removed", "sa-added", "policy-removed", "route-removed", "overrun"),
)
"""Faults that there are with kernel SAs only."""

NETEM_FAULTS = ("loss", "loss-all", "reorder-all", "duplicate-all", "deaf", "mute")
"""Faults that need the kernel's netem."""

FAULTS = (
    *(f"{kind}-{what}" for kind in ("kill", "pause") for what in ("idpd", "miked", "both", "tm")),
    *("restart", "forget", "clock-seconds", "clock-years", "disk-full"),
    *("cut", "partition", "move", "mtu"),
    *NETEM_FAULTS,
    *KERNEL_FAULTS,
)
"""Faults of the fault campaign (docs/EXPERIMENTS.md says what each is). ``tm``: both daemons of
the TM, wherever it is; ``all``: the cables of all devices."""

FLOODS = (
    *(f"join-flood-{who}" for who in ("forged", "foreign", "ex-member")),
    *("hello-flood-fake", "hello-flood-forged", "light-hello-flood", "notice-flood"),
    *("request-flood", "oversized-flood", "malformed-flood", "esp-inject", "esp-replay"),
)
"""Attacks at the highest rate that the machine carries: what they cost a join is judged."""

DECRYPTION = "decrypt-after-exclusion"
"""Attack that sends nothing: an ex-member's keys on what is sent later."""

ATTACKS = (
    *("replay-all", "forged-hello", "forged-leave", "prefix-theft", "stolen-psk"),
    *(f"tm-{who}" for who in ("outsider", "foreign", "ex-member", "member")),
    *("downgrade-mode", "downgrade-policy", "ex-member-return", DECRYPTION),
    *FLOODS,
)
"""Attacks of the attack campaign (testbed/attacker)."""

MONITOR = 1
TM = 2


@dataclass(frozen=True, slots=True)
class Variant:
    """How SAs are installed, and the timers; a fleet of daemons is loaded per variant.

    Attributes:
        name: label in every table and figure.
        sa_backend: one of `BACKENDS`.
        sa_mode: one of `SA_MODES`.
        suite: algorithm suite of the SAs.
        hello_interval_ms: IDP's; a device is down after four of them.
        hello_answer_spread_ms: a device greets a newcomer after a random time below this; no
            longer than the hello interval.
        activation_delay_ms: from written to sending with the new epoch (per-sender).
        deactivation_delay_ms: from written to removal of the old SAs (per-sender).
        mike_patience: factor on MIKE's timers that act on loss or silence only (docs/mike.md), so
            that a slow machine is not taken for a lossy one. Latency without loss is the same.
        mike_mode: one of `MIKE_MODES`: key agreement, key distribution, or one of them by the size
            of the group.
        cpu: one of `CPU_ARRANGEMENTS`: ``measured-first`` lets monitor, TM and the device that
            joins run before the bystanders until the step's epoch is written everywhere, since on
            hardware of their own these would not delay them (testbed/turns.py); ``equal`` lets
            all devices compete.
        wan_delay_ms: one way between any two black border routers while repetitions run; None: as
            the topology says.
        wan_loss_percent: on each link between them, per direction; None: as the topology says.
        full_hello_every: one hello of so many is signed, the others are light.
        black_groups: one of `BLACK_GROUPS`: whether the daemons' and the ESP packets' multicast
            groups are joined as a whole or source by source (RFC 4607).
        fresh_fleet: whether the network is built anew for each repetition, so that no router
            remembers a source.
        unicast: one of `UNICAST`: where the keys of unicast SAs come from; ``off``: none are made,
            as in the paper's own measurement of multicast.
        domain_policy: whether the devices keep to a signed domain policy.
        protection: one of `PROTECTIONS`: ``clear-text`` is a tunnel without IPsec for comparison of
            throughput; it needs the memory backend, and the guard is off.
    """

    name: str
    sa_backend: str = "netlink"
    sa_mode: str = "per-sender"
    suite: str = "aes-gcm-128"
    hello_interval_ms: int = 1000
    hello_answer_spread_ms: int = 250
    activation_delay_ms: int = 200
    deactivation_delay_ms: int = 500
    full_hello_every: int = 16
    mike_patience: int = 4
    mike_mode: str = "ka"
    cpu: str = "measured-first"
    wan_delay_ms: float | None = None
    wan_loss_percent: float | None = None
    black_groups: str = "any-source"
    fresh_fleet: bool = False
    unicast: str = "off"
    domain_policy: bool = False
    protection: str = "ipsec"

    def daemons(self) -> Variant:
        """Return what a loaded fleet is made for: the same for variants that may share one."""
        return replace(self, name="", wan_delay_ms=None, wan_loss_percent=None)


@dataclass(frozen=True, slots=True)
class Campaign:
    """One kind of measurement with its variants.

    Attributes:
        kind: one of `experiments.kinds.KINDS`.
        repetitions: per variant.
        variants: at least one, except for sa-write.
        order: `blocked` (one variant after the other, the seed decides which first) or
            `abba` (halves, mirrored, against drift; loads the daemons once more).
        methods: of a leave, alternating so that every group size gets each.
        lead_ms: least time between giving the trigger and the trigger.
        jitter_ms: the trigger is moved by up to this much, so that no step locks to hello timers.
        stagger_ms: between the joins that prepare a leave repetition.
        deadline_ms: a step whose epoch is not everywhere by then has failed.
        check_deadline_ms: the checks after it must pass by then.
        idle_floor_percent: less CPU idle than this during a step flags it as starved.
        clock_bound_ms: larger error bounds of the clock offsets are flagged.
        backends: sa-write only: what to compare.
        batch: sa-write only: SAs per batched write.
        red_interval_ms: join only, where there are clients: between the packets of the red streams
            that find out when the first one gets through; 0: no streams.
        rates_pps: throughput and rekey-loss only: packets per second of a stream, in rising order.
        sizes_bytes: throughput only: sizes of its UDP payload.
        stream_ms: throughput and rekey-loss only: how long it is sent at each rate.
        churners: rekey-loss only: so many devices, the last ones, come and go.
        events: rekey-loss: how often one of them comes or goes; faults: how many faults.
        faults: faults only: what may happen, of `FAULTS`.
        attacks: attacks only: what is done, of `ATTACKS`, in an order of the seed's.
        pairs: attacks only: joins without and under each flood, in turns; other attacks have one
            pair.
        join_ratio_max: attacks only: median join under a flood against without.
        growth_mib_max: attacks only: memory by which a daemon may grow during one attack.
        sizes: discovery and hello-cost only: group sizes, each a step; at most the plan's devices.
        window_ms: hello-cost and hello-interval: how long is counted; attacks: how long an attack
            goes on before a device joins under it.
        periods_percent: flapping only: periods, each a step, in percent of the hello interval.
        flaps: flapping only: how often the cable goes out and in.
        packets: delivery only: in each stream.
        packet_interval_ms: delivery only: between the packets of a stream.
        keep_captures: delivery only: whether the captures of the black wire are kept even if
            nothing is wrong with them.
    """

    kind: str
    repetitions: int
    variants: tuple[Variant, ...] = ()
    order: str = "blocked"
    methods: tuple[str, ...] = METHODS
    lead_ms: int = 500
    jitter_ms: int = 100
    stagger_ms: int = 300
    deadline_ms: int = 15000
    check_deadline_ms: int = 8000
    idle_floor_percent: float = 5.0
    clock_bound_ms: float = 1.0
    backends: tuple[str, ...] = (
        "netlink",
        "netlink batched",
        "pfkey",
        "command",
        "exec",
        "ip -batch",
    )
    batch: int = 10
    red_interval_ms: int = 20
    rates_pps: tuple[int, ...] = (100, 200, 400)
    sizes_bytes: tuple[int, ...] = (200,)
    stream_ms: int = 2000
    churners: int = 2
    events: int = 20
    faults: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    pairs: int = 3
    join_ratio_max: float = 2.0
    growth_mib_max: float = 8.0
    sizes: tuple[int, ...] = (10,)
    window_ms: int = 16_000
    periods_percent: tuple[int, ...] = (50, 100, 200, 400, 800)
    flaps: int = 4
    packets: int = 20
    packet_interval_ms: int = 50
    keep_captures: bool = False

    def levels(self) -> list[tuple[int, int]]:
        """Return (size in bytes, rate in packets per second) of a throughput's levels in order."""
        return [(size, rate) for size in self.sizes_bytes for rate in self.rates_pps]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One join or leave, or one part of what another kind of campaign does.

    Attributes:
        index: from 1.
        subject: number of the device that it is about.
        method: what is done, such as `start`, `shutdown` or `cut`.
        group_size: members after it.
        jitter_ns: added to the trigger.
        packet_sender: number of the device that sends the check packet.
        amount: how much of what the campaign is about; its kind says what.
    """

    index: int
    subject: int
    method: str
    group_size: int
    jitter_ns: int
    packet_sender: int
    amount: int = 0


@dataclass(frozen=True, slots=True)
class Repetition:
    """One unit of work: started from parked daemons, recorded as a whole or not at all."""

    campaign: Campaign
    variant: Variant
    index: int
    steps: tuple[PlannedStep, ...] = field(repr=False)

    @property
    def key(self) -> str:
        """Name of the repetition's part directory."""
        return f"{self.campaign.kind}--{self.variant.name}--{self.index:03d}"


def check_variant(variant: Variant) -> None:
    """Raise PlanError if a variant makes no sense."""
    name = variant.name
    safe = bool(name) and all(c.isalnum() or c in "+-_." for c in name) and "--" not in name
    require(safe, f"variant name {name!r}: letters, digits, + - _ . only")
    require(
        variant.sa_backend in BACKENDS,
        f"{name}: unknown SA backend {variant.sa_backend!r} (known: {', '.join(BACKENDS)})",
    )
    require(
        variant.sa_mode in SA_MODES,
        f"{name}: unknown SA mode {variant.sa_mode!r} (known: {', '.join(SA_MODES)})",
    )
    gcm_shared = variant.sa_mode == "paper" and "gcm" in variant.suite
    require(not gcm_shared, f"{name}: a shared SA must not use AES-GCM (nonces would repeat)")
    require(
        variant.cpu in CPU_ARRANGEMENTS,
        f"{name}: unknown cpu {variant.cpu!r} (known: {', '.join(CPU_ARRANGEMENTS)})",
    )
    require(
        variant.black_groups in BLACK_GROUPS,
        f"{name}: unknown black_groups {variant.black_groups!r} (known: {', '.join(BLACK_GROUPS)})",
    )
    require(
        variant.unicast in UNICAST,
        f"{name}: unknown unicast {variant.unicast!r} (known: {', '.join(UNICAST)})",
    )
    require(
        variant.protection in PROTECTIONS,
        f"{name}: unknown protection {variant.protection!r} (known: {', '.join(PROTECTIONS)})",
    )
    clear = variant.protection == "clear-text"
    require(
        not clear or variant.sa_backend == "memory",
        f"{name}: protection clear-text needs sa_backend memory",
    )
    delay_ms, loss_percent = variant.wan_delay_ms or 0, variant.wan_loss_percent or 0
    require(0 <= delay_ms <= 10_000, f"{name}: wan_delay_ms must be from 0 to 10000")
    require(0 <= loss_percent < 100, f"{name}: wan_loss_percent must be from 0 to below 100")
    require(
        variant.mike_mode in MIKE_MODES,
        f"{name}: unknown mike_mode {variant.mike_mode!r} (known: {', '.join(MIKE_MODES)})",
    )
    require(variant.mike_patience >= 1, f"{name}: mike_patience must be at least 1")
    require(variant.hello_interval_ms >= 50, f"{name}: hello_interval_ms is too small (50)")
