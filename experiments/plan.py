"""From a catalog file and options to the ordered list of repetitions: everything drawn beforehand.

A plan is data: the same file, options and seed give the same repetitions, step order, trigger
jitter and packet senders. What depends on the machine (which environment) is no part of it.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.campaign import (
    ATTACKS,
    FAULTS,
    KERNEL_FAULTS,
    METHODS,
    Campaign,
    PlannedStep,
    Repetition,
    Variant,
    check_variant,
)
from experiments.errors import PlanError
from experiments.kinds import KINDS, draw_steps
from experiments.reading import build, require

ATTACKED_MIN = 5
CATALOG = Path(__file__).parent / "catalog"


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
        """Return every repetition on a fleet in the order in which they run."""
        return [
            Repetition(campaign, variant, index, self._steps(campaign, variant, index))
            for campaign in self.campaigns
            if KINDS[campaign.kind].draw is not None
            for variant, index in _order(campaign, self.seed)
        ]

    def _steps(
        self, campaign: Campaign, variant: Variant, repetition: int
    ) -> tuple[PlannedStep, ...]:
        """Draw the steps of one repetition; a variant's draw does not depend on the others'."""
        seed = f"{self.seed} {campaign.kind} {variant.name} {repetition}"
        return draw_steps(campaign, self.devices, repetition, random.Random(seed))  # noqa: S311

    def sa_write(self) -> Campaign | None:
        """Return the sa-write campaign, if there is one."""
        return next((c for c in self.campaigns if c.kind == "sa-write"), None)

    def variants(self, kind: str) -> tuple[Variant, ...]:
        """Return the variants of the campaign of a kind, none if there is no such campaign."""
        return next((c.variants for c in self.campaigns if c.kind == kind), ())

    @property
    def memory(self) -> bool:
        """Whether any variant runs without kernel SAs."""
        return any(
            v.sa_backend == "memory" and v.protection == "ipsec"
            for c in self.campaigns
            for v in c.variants
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `as_json` wrote (a manifest) or a catalog file's tables."""
        plan = build(cls, data, "plan")
        _validate(plan)
        return plan


def _order(campaign: Campaign, seed: int) -> list[tuple[Variant, int]]:
    """Return (variant, index) in running order."""
    variants = list(campaign.variants)
    random.Random(f"{seed} order {campaign.kind}").shuffle(variants)  # noqa: S311 - a plan
    loads = list(dict.fromkeys(variant.daemons() for variant in variants))
    variants.sort(key=lambda variant: loads.index(variant.daemons()))
    everything = range(1, campaign.repetitions + 1)
    if campaign.order == "blocked" or campaign.repetitions < 2:
        return [(variant, index) for variant in variants for index in everything]
    half = (campaign.repetitions + 1) // 2
    first = [(v, i) for v in variants for i in everything if i <= half]
    second = [(v, i) for v in reversed(variants) for i in everything if i > half]
    return first + second


def _validate(plan: Plan) -> None:
    require(3 <= plan.devices <= 200, f"devices must be 3 to 200, not {plan.devices}")
    require(bool(plan.campaigns), "a plan needs at least one campaign")
    kinds = [campaign.kind for campaign in plan.campaigns]
    require(len(set(kinds)) == len(kinds), "each kind of campaign may appear once in a plan")
    for campaign in plan.campaigns:
        kind = campaign.kind
        require(kind in KINDS, f"unknown campaign kind {kind!r} (known: {', '.join(KINDS)})")
        require(campaign.repetitions >= 1, f"{kind}: repetitions must be at least 1")
        require(campaign.order in ("blocked", "abba"), f"{kind}: order is blocked or abba")
        require(
            bool(campaign.methods) and set(campaign.methods) <= set(METHODS),
            f"{kind}: methods are {' and '.join(METHODS)}",
        )
        unknown = set(campaign.faults) - set(FAULTS)
        require(not unknown, f"{kind}: unknown faults {', '.join(sorted(unknown))}")
        require(kind != "faults" or bool(campaign.faults), f"{kind}: name some faults")
        unknown = set(campaign.attacks) - set(ATTACKS)
        require(not unknown, f"{kind}: unknown attacks {', '.join(sorted(unknown))}")
        require(kind != "attacks" or bool(campaign.attacks), f"{kind}: name some attacks")
        require(
            kind != "attacks" or plan.devices >= ATTACKED_MIN,
            f"attacks: devices must be at least {ATTACKED_MIN}: members, a joiner, an ex-member",
        )
        require(campaign.jitter_ms >= 0, f"{kind}: jitter_ms must not be negative")
        require(campaign.deadline_ms > 0, f"{kind}: deadline_ms must be positive")
        if KINDS[kind].draw is not None:
            require(bool(campaign.variants), f"{kind}: needs at least one variant")
        names = [variant.name for variant in campaign.variants]
        require(len(set(names)) == len(names), f"{kind}: two variants have one name")
        for variant in campaign.variants:
            check_variant(variant)
            forwards = variant.sa_backend != "memory" or variant.protection == "clear-text"
            require(
                kind not in ("throughput", "delivery", "rekey-loss") or forwards,
                f"{kind}: {variant.name}: without kernel SAs nothing red crosses the network",
            )
            require(
                kind == "throughput" or variant.protection == "ipsec",
                f"{kind}: {variant.name}: clear text is only for throughput",
            )


@dataclass(frozen=True, slots=True)
class Overrides:
    """Options of the command line; None leaves the catalog's value."""

    devices: int | None = None
    repetitions: int | None = None
    seed: int | None = None
    sa_backend: str | None = None
    sa_mode: str | None = None
    mike_mode: str | None = None
    suite: str | None = None
    hello_interval_ms: int | None = None
    topology: str | None = None
    keep_captures: bool = False
    attacks: tuple[str, ...] = ()
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
    plan: Plan = build(Plan, {"name": name, **data}, path.name)
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
        if options.sa_backend == "memory" and changed.faults:
            changed = _without(changed, KERNEL_FAULTS)
        if options.keep_captures:
            changed = replace(changed, keep_captures=True)
        if options.attacks and changed.attacks:
            changed = replace(changed, attacks=options.attacks)
        changed = replace(changed, variants=_override_variants(campaign.variants, options))
        campaigns.append(changed)
    return replace(
        plan,
        devices=plan.devices if options.devices is None else options.devices,
        topology=options.topology or plan.topology,
        seed=plan.seed if options.seed is None else options.seed,
        campaigns=tuple(campaigns),
    )


def _without(campaign: Campaign, faults: Sequence[str]) -> Campaign:
    """Leave out faults; where each kind comes once in a repetition, it still does."""
    left = tuple(kind for kind in campaign.faults if kind not in faults)
    events = len(left) if campaign.events == len(campaign.faults) else campaign.events
    return replace(campaign, faults=left, events=events)


def _override_variants(variants: Sequence[Variant], options: Overrides) -> tuple[Variant, ...]:
    """Apply options; naming a backend or a mode leaves one variant for each, named after them.

    What has no SAs at all stays beside it as it is.
    """
    result: list[Variant] = []
    for variant in variants:
        if variant.protection == "clear-text":
            result.append(variant)
            continue
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
            mike_mode=options.mike_mode or variant.mike_mode,
            hello_interval_ms=options.hello_interval_ms or variant.hello_interval_ms,
        )
        if options.sa_backend or options.sa_mode or options.mike_mode:
            named = "" if changed.mike_mode == "ka" else f"+{changed.mike_mode}"
            changed = replace(changed, name=f"{backend}+{mode}{named}")
        if changed.name not in [earlier.name for earlier in result]:
            result.append(changed)
    return tuple(result)
