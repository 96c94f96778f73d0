"""What devices announce changes while a simulation runs: by their operators, and by a thief."""

from __future__ import annotations

from ipaddress import IPv6Network

from protocol.ipsec.model import ANY_NETWORK, Prefix
from testbed.sim.device import Device
from testbed.sim.faults import Fault, Kind
from testbed.sim.people import common_prefixes, spare_prefixes
from testbed.sim.reddraws import COMMON


def begin_red(device: Device, fault: Fault) -> None:
    """Change what a device announces."""
    prefix = _prefix(device, fault)
    if fault.kind is Kind.PREFIX_DROP:
        device.withdraw(prefix)
    else:
        device.announce(prefix, forced=fault.kind is Kind.THEFT)


def end_red(device: Device, fault: Fault) -> None:
    """Change it back."""
    prefix = _prefix(device, fault)
    if fault.kind is Kind.PREFIX_DROP:
        device.announce(prefix)
    else:
        device.withdraw(prefix)


def _prefix(device: Device, fault: Fault) -> Prefix:
    """Return the prefix that a fault is about."""
    people, number = device.people, int(fault.amount)
    if fault.kind is Kind.PREFIX_DROP:
        return people.prefixes(device.index)[0]
    if fault.kind is Kind.PREFIX_ADD:
        if fault.flavour == COMMON:
            return common_prefixes(people.partition)[number]
        return spare_prefixes(device.index, people.partition)[number]
    victim = fault.devices[1]
    whole = people.prefixes(victim)[0]
    assert isinstance(whole, IPv6Network)
    part = next(whole.subnets(new_prefix=72))
    black = IPv6Network((people.address(victim), 64), strict=False)
    loot: list[Prefix] = [whole, part, whole.supernet(new_prefix=56), black, ANY_NETWORK]
    loot.append(spare_prefixes(victim, people.partition)[0])
    return loot[number]
