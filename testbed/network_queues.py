"""Limits, delays and losses of links: HTB and netem, set, changed and read back.

Each end of a link shapes what it sends, so both directions have the link's values. HTB is
Mininet's recipe for ``bw=``; netem stands below it, or alone. All of a node's queues are set by one
``tc -batch``, whose last lines report what the kernel has made of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from testbed import network_batch
from testbed.network_batch import NetworkError, attempt, json_values
from testbed.spec import DELAY_MS_MAX, Link

_HTB_RATE: Final = re.compile(r"^class htb .* rate ([0-9.]+)([KMG]?)bit", re.MULTILINE)
_UNITS: Final = {"": 1e-6, "K": 1e-3, "M": 1.0, "G": 1e3}
_TOLERANCE: Final = 0.01
"""Share by which the kernel may round a value: rates and times are kept in its own units."""


def refuse_without_netem(links: tuple[Link, ...]) -> None:
    """Find out in the calling thread's namespace whether the kernel can delay and lose packets.

    Raises:
        NetworkError: a link needs that and the kernel cannot; it is never left undelayed.
    """
    impaired = next((link for link in links if link.impaired), None)
    if impaired is None:
        return
    done = attempt("tc", ["qdisc add dev lo root handle 10: netem delay 1ms"])
    if done.returncode != 0:
        raise NetworkError(
            f"link {impaired.name} has a delay or loss, and this kernel has no netem "
            "(sch_netem); use --env vm"
        )
    network_batch.batch("tc", ["qdisc del dev lo root"], "the probe for netem")


def configure(ports: Mapping[str, Link], where: str) -> None:
    """Give interfaces of the calling thread's namespace their links' queues, and check them.

    Raises:
        NetworkError: a queue could not be made or is not as asked for.
    """
    lines: list[str] = []
    limited = []
    for interface, link in ports.items():
        if link.bandwidth_mbit is not None:
            limited.append(interface)
            lines += [
                f"qdisc add dev {interface} root handle 5:0 htb default 1",
                f"class add dev {interface} parent 5:0 classid 5:1 "
                f"htb rate {link.bandwidth_mbit:f}Mbit burst 15k",
            ]
        if link.impaired:
            lines.append(_netem_line(interface, link))
    if not lines:
        return
    lines += [f"class show dev {interface}" for interface in limited]
    said = network_batch.batch("tc", [*lines, "qdisc show"], where)
    _verify_rates([ports[interface] for interface in limited], said, where)
    for interface, link in ports.items():
        if link.impaired:
            _verify_netem(interface, link, said, where)


def change(interface: str, link: Link, where: str) -> None:
    """Change the delay, jitter and loss of an interface in the calling thread's namespace.

    Raises:
        NetworkError: the kernel cannot, or did not.
    """
    said = network_batch.batch(
        "tc", [_netem_line(interface, link), f"qdisc show dev {interface}"], where
    )
    _verify_netem(interface, link, said, where)


def disturb(interface: str, link: Link, what: str, where: str) -> None:
    """Have an interface of the calling thread's namespace treat what it sends so (netem's words).

    Raises:
        NetworkError: the kernel has no netem, or did not take it.
    """
    lines = [f"qdisc replace dev {interface} {_parent(link)} handle 10: netem {what}"]
    said = network_batch.batch("tc", [*lines, f"qdisc show dev {interface}"], where)
    kinds = [queue.get("kind") for listing in json_values(said) for queue in listing]
    if "netem" not in kinds:
        raise NetworkError(f"{where}: {interface} has no netem queue; use --env vm")


def calm(interface: str, link: Link, where: str) -> None:
    """Undo `disturb`."""
    network_batch.batch("tc", [f"qdisc del dev {interface} {_parent(link)}"], where)


def _parent(link: Link) -> str:
    """Return below what netem stands."""
    return "root" if link.bandwidth_mbit is None else "parent 5:1"


def refuse_bad_values(link: Link) -> None:
    """Refuse values that netem would take for something else, or not at all.

    Raises:
        NetworkError: names the value and its limits.
    """
    for name, value, highest in (
        ("delay_ms", link.delay_ms, float(DELAY_MS_MAX)),
        ("jitter_ms", link.jitter_ms, link.delay_ms),
        ("loss_percent", link.loss_percent, 100.0),
    ):
        if not 0 <= value <= highest:
            raise NetworkError(
                f"link {link.name}: {name} must be from 0 to {highest:g}, is {value:g}"
            )


def _netem_line(interface: str, link: Link) -> str:
    line = f"qdisc replace dev {interface} {_parent(link)} handle 10: netem"
    line += f" delay {link.delay_ms:g}ms"
    if link.jitter_ms > 0:
        line += f" {link.jitter_ms:g}ms"
    return f"{line} loss {link.loss_percent:g}%"


def _verify_rates(links: list[Link], classes: str, where: str) -> None:
    """Check that ``tc class show`` lists one HTB class per limited link, with its rate."""
    wanted = [link.bandwidth_mbit for link in links if link.bandwidth_mbit is not None]
    found = [float(number) * _UNITS[unit] for number, unit in _HTB_RATE.findall(classes)]
    matches = len(found) == len(wanted) and all(
        abs(rate - asked) <= _TOLERANCE * asked for rate, asked in zip(found, wanted, strict=True)
    )
    if not matches:
        raise NetworkError(
            f"{where}: limits of {wanted} Mbit/s were asked for, the kernel has {found}; "
            "does it have sch_htb?"
        )


def _verify_netem(interface: str, link: Link, said: str, where: str) -> None:
    queues = [queue for listing in json_values(said) for queue in listing]
    for queue in queues:
        if queue.get("kind") == "netem" and queue.get("dev", interface) == interface:
            found = _netem_values(queue.get("options", {}))
            break
    else:
        raise NetworkError(f"{where}: {interface} has no netem queue")
    wanted = (link.delay_ms, link.jitter_ms, link.loss_percent)
    near = [abs(a - b) <= max(_TOLERANCE * b, 1e-3) for a, b in zip(found, wanted, strict=True)]
    if not all(near):
        raise NetworkError(
            f"{where}: {interface} should have delay, jitter (ms) and loss (%) of {wanted}, "
            f"the kernel has {found}"
        )


def _netem_values(options: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return delay and jitter in ms and loss in percent of ``tc -j qdisc show``."""
    delay = options.get("delay", {})
    loss = options.get("loss-random", {})
    return (
        float(delay.get("delay", 0)) * 1e3,
        float(delay.get("jitter", 0)) * 1e3,
        float(loss.get("loss", 0)) * 1e2,
    )
