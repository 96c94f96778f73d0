"""From a catalog file and options to the ordered list of repetitions: everything drawn beforehand.

A plan is data: the same file, options and seed give the same repetitions, step order, trigger
jitter and packet senders. What depends on the machine (which environment) is no part of it.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from experiments.errors import PlanError

CATALOG = Path(__file__).parent / "catalog"
KINDS = ("join", "leave", "sa-write")
BACKENDS = ("netlink", "command", "pfkey", "memory")
SA_MODES = ("per-sender", "paper")
CPU_ARRANGEMENTS = ("measured-first", "equal")
METHODS = ("shutdown", "cut")
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
        cpu: one of `CPU_ARRANGEMENTS`: ``measured-first`` lets monitor, TM and the device that
            joins run before the bystanders until the step's epoch is written everywhere, since on
            hardware of their own these would not delay them (testbed/turns.py); ``equal`` lets
            all devices compete.
    """

    name: str
    sa_backend: str = "netlink"
    sa_mode: str = "per-sender"
    suite: str = "aes-gcm-128"
    hello_interval_ms: int = 1000
    hello_answer_spread_ms: int = 250
    activation_delay_ms: int = 200
    deactivation_delay_ms: int = 500
    mike_patience: int = 4
    cpu: str = "measured-first"


@dataclass(frozen=True, slots=True)
class Campaign:
    """One kind of measurement with its variants.

    Attributes:
        kind: one of `KINDS`.
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


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One join or leave.

    Attributes:
        index: from 1.
        subject: number of the device that joins or leaves.
        method: `start`, `shutdown` or `cut`.
        group_size: members after it.
        jitter_ns: added to the trigger.
        packet_sender: number of the device that sends the check packet.
    """

    index: int
    subject: int
    method: str
    group_size: int
    jitter_ns: int
    packet_sender: int


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


@dataclass(frozen=True, slots=True)
class Plan:
    """A validated experiment.

    Attributes:
        name: of the experiment, and of its folder in results/.
        title: one line.
        devices: number of IPsec devices.
        topology: name of the network.
        seed: decides trigger jitter, packet senders and the order of the variants.
        campaigns: in order.
    """

    name: str
    title: str
    devices: int
    topology: str
    seed: int
    campaigns: tuple[Campaign, ...]

    def repetitions(self) -> list[Repetition]:
        """Return every repetition of joins and leaves in the order in which they run."""
        units: list[Repetition] = []
        for campaign in self.campaigns:
            if campaign.kind != "sa-write":
                for variant, index in _order(campaign, self.seed):
                    steps = _steps(self, campaign, variant, index)
                    units.append(Repetition(campaign, variant, index, steps))
        return units

    def sa_write(self) -> Campaign | None:
        """Return the sa-write campaign, if there is one."""
        return next((c for c in self.campaigns if c.kind == "sa-write"), None)

    @property
    def memory(self) -> bool:
        """Whether any variant runs without kernel SAs."""
        return any(v.sa_backend == "memory" for c in self.campaigns for v in c.variants)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `as_json` wrote (a manifest) or a catalog file's tables."""
        plan = _build(cls, data, "plan")
        _validate(plan)
        return plan


def _order(campaign: Campaign, seed: int) -> list[tuple[Variant, int]]:
    """Return (variant, index) in running order."""
    variants = list(campaign.variants)
    random.Random(f"{seed} order {campaign.kind}").shuffle(variants)  # noqa: S311 - a plan
    everything = range(1, campaign.repetitions + 1)
    if campaign.order == "blocked" or campaign.repetitions < 2:
        return [(variant, index) for variant in variants for index in everything]
    half = (campaign.repetitions + 1) // 2
    first = [(v, i) for v in variants for i in everything if i <= half]
    second = [(v, i) for v in reversed(variants) for i in everything if i > half]
    return first + second


def _steps(
    plan: Plan, campaign: Campaign, variant: Variant, repetition: int
) -> tuple[PlannedStep, ...]:
    """Draw the steps of one repetition; a variant's draw does not depend on the others'."""
    draw = random.Random(  # noqa: S311 - a plan
        f"{plan.seed} {campaign.kind} {variant.name} {repetition}"
    )
    others = list(range(3, plan.devices + 1))
    joins = campaign.kind == "join"
    steps = []
    for index, subject in enumerate(others if joins else reversed(others), 1):
        size = subject if joins else subject - 1
        members = range(1, size + 1)
        method = campaign.methods[(index + repetition) % len(campaign.methods)]
        steps.append(
            PlannedStep(
                index=index,
                subject=subject,
                method="start" if joins else method,
                group_size=size,
                jitter_ns=draw.randrange(campaign.jitter_ms * 1_000_000 + 1),
                packet_sender=members[(index + repetition) % len(members)],
            )
        )
    return tuple(steps)


def _build(kind: type, data: Any, where: str) -> Any:
    """Build a dataclass from a mapping; unknown and missing keys and wrong types are errors."""
    if not isinstance(data, Mapping):
        raise PlanError(f"{where}: expected a table")
    names = {f.name: f for f in fields(kind)}
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise PlanError(f"{where}: unknown key {unknown[0]!r} (known: {', '.join(names)})")
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in data.items():
        values[name] = _value(types[name], value, f"{where}.{name}")
    try:
        return kind(**values)
    except TypeError as error:
        raise PlanError(f"{where}: {str(error).split(') ')[-1]}") from error


def _value(expected: Any, value: Any, where: str) -> Any:
    if expected == tuple[Variant, ...]:
        return tuple(_build(Variant, item, f"{where}[{i}]") for i, item in enumerate(value))
    if expected == tuple[Campaign, ...]:
        return tuple(_build(Campaign, item, f"{where}[{i}]") for i, item in enumerate(value))
    if expected == tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise PlanError(f"{where}: expected a list of strings")
        return tuple(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or isinstance(value, bool):
        raise PlanError(f"{where}: expected {expected.__name__}, found {value!r}")
    return value


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise PlanError(text)


def _validate(plan: Plan) -> None:
    _require(3 <= plan.devices <= 200, f"devices must be 3 to 200, not {plan.devices}")
    _require(bool(plan.campaigns), "a plan needs at least one campaign")
    kinds = [campaign.kind for campaign in plan.campaigns]
    _require(len(set(kinds)) == len(kinds), "each kind of campaign may appear once in a plan")
    for campaign in plan.campaigns:
        kind = campaign.kind
        _require(kind in KINDS, f"unknown campaign kind {kind!r} (known: {', '.join(KINDS)})")
        _require(campaign.repetitions >= 1, f"{kind}: repetitions must be at least 1")
        _require(campaign.order in ("blocked", "abba"), f"{kind}: order is blocked or abba")
        _require(
            bool(campaign.methods) and set(campaign.methods) <= set(METHODS),
            f"{kind}: methods are {' and '.join(METHODS)}",
        )
        _require(campaign.jitter_ms >= 0, f"{kind}: jitter_ms must not be negative")
        _require(campaign.deadline_ms > 0, f"{kind}: deadline_ms must be positive")
        if kind != "sa-write":
            _require(bool(campaign.variants), f"{kind}: needs at least one variant")
        names = [variant.name for variant in campaign.variants]
        _require(len(set(names)) == len(names), f"{kind}: two variants have one name")
        for variant in campaign.variants:
            _validate_variant(variant)


def _validate_variant(variant: Variant) -> None:
    name = variant.name
    safe = bool(name) and all(c.isalnum() or c in "+-_." for c in name) and "--" not in name
    _require(safe, f"variant name {name!r}: letters, digits, + - _ . only")
    _require(
        variant.sa_backend in BACKENDS,
        f"{name}: unknown SA backend {variant.sa_backend!r} (known: {', '.join(BACKENDS)})",
    )
    _require(
        variant.sa_mode in SA_MODES,
        f"{name}: unknown SA mode {variant.sa_mode!r} (known: {', '.join(SA_MODES)})",
    )
    gcm_shared = variant.sa_mode == "paper" and "gcm" in variant.suite
    _require(not gcm_shared, f"{name}: a shared SA must not use AES-GCM (nonces would repeat)")
    _require(
        variant.cpu in CPU_ARRANGEMENTS,
        f"{name}: unknown cpu {variant.cpu!r} (known: {', '.join(CPU_ARRANGEMENTS)})",
    )
    _require(variant.mike_patience >= 1, f"{name}: mike_patience must be at least 1")
    _require(variant.hello_interval_ms >= 50, f"{name}: hello_interval_ms is too small (50)")


@dataclass(frozen=True, slots=True)
class Overrides:
    """Options of the command line; None leaves the catalog's value."""

    devices: int | None = None
    repetitions: int | None = None
    seed: int | None = None
    sa_backend: str | None = None
    sa_mode: str | None = None
    suite: str | None = None
    hello_interval_ms: int | None = None
    quick: bool = False


def load(name: str, overrides: Overrides | None = None, catalog: Path = CATALOG) -> Plan:
    """Read a catalog file and apply the options.

    Raises:
        PlanError: no such file, or one that makes no sense.
    """
    path = catalog / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in catalog.glob("*.toml")))
        raise PlanError(f"no experiment {name!r} (known: {known})") from None
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path.name}: {error}") from error
    options = overrides or Overrides()
    quick = data.pop("quick", {})
    if options.quick:
        data.update({key: value for key, value in quick.items() if key in ("devices", "seed")})
        for campaign in data.get("campaigns", ()):
            campaign.update(quick.get(campaign.get("kind"), {}))
    plan: Plan = _build(Plan, {"name": name, **data}, path.name)
    plan = _override(plan, options)
    _validate(plan)
    return plan


def _override(plan: Plan, options: Overrides) -> Plan:
    """Apply the options; SA writes beside other campaigns keep their rounds, and need a kernel."""
    campaigns = []
    for campaign in plan.campaigns:
        changed = campaign
        aside = campaign.kind == "sa-write" and len(plan.campaigns) > 1
        if aside and options.sa_backend == "memory":
            continue
        if options.repetitions is not None and not aside:
            changed = replace(changed, repetitions=options.repetitions)
        changed = replace(changed, variants=_override_variants(campaign.variants, options))
        campaigns.append(changed)
    return replace(
        plan,
        devices=plan.devices if options.devices is None else options.devices,
        seed=plan.seed if options.seed is None else options.seed,
        campaigns=tuple(campaigns),
    )


def _override_variants(variants: Sequence[Variant], options: Overrides) -> tuple[Variant, ...]:
    """Apply SA options; naming a backend or a mode leaves one variant, named after them."""
    result = []
    for variant in variants:
        backend = options.sa_backend or variant.sa_backend
        mode = options.sa_mode or variant.sa_mode
        suite = options.suite or variant.suite
        if options.suite is None and mode != variant.sa_mode:
            suite = "3des-sha1" if mode == "paper" else "aes-gcm-128"
        changed = replace(
            variant,
            sa_backend=backend,
            sa_mode=mode,
            suite=suite,
            hello_interval_ms=options.hello_interval_ms or variant.hello_interval_ms,
        )
        if options.sa_backend or options.sa_mode:
            changed = replace(changed, name=f"{backend}+{mode}")
        if changed.name not in [earlier.name for earlier in result]:
            result.append(changed)
    return tuple(result)
