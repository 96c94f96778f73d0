"""Who received whose red multicast: a matrix per address family, counts and first arrivals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments import deliverysummary
from experiments.analysis import Run
from experiments.plots import style

_WORST = 0.48
"""No cell gets darker than this part of the colour map, so that black text stays readable."""


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw one figure per variant, if the run has delivery campaigns; return the files."""
    files: list[Path] = []
    for variant, found in deliverysummary.summarise(run).items():
        if found["matrix"]:
            files += _draw(run, folder, variant, found)
    return files


def _draw(run: Run, folder: Path, variant: str, found: dict[str, Any]) -> list[Path]:
    matrix = found["matrix"]
    families = sorted({one["family"] for one in matrix}, reverse=True)
    senders = sorted({(one["sender_kind"], one["sender_lan"]) for one in matrix})
    receivers = sorted({(one["receiver_kind"], one["receiver_lan"]) for one in matrix})
    side = 1.75 + 0.78 * len(receivers)
    made, axes = style.figure(
        len(families),
        width=max(10.5, side * len(families)),
        height=2.9 + 0.6 * len(senders),
        share_y=False,
    )
    known = [one["first_arrival_ms"] for one in matrix if one["first_arrival_ms"] is not None]
    slowest = max(known, default=1.0)
    for axis, family in zip(axes, families, strict=True):
        cells = {
            (
                (one["sender_kind"], one["sender_lan"]),
                (one["receiver_kind"], one["receiver_lan"]),
            ): one
            for one in matrix
            if one["family"] == family
        }
        for y, sender in enumerate(senders):
            for x, receiver in enumerate(receivers):
                _cell(axis, (x, y), cells.get((sender, receiver)), slowest)
        _label(axis, senders, receivers)
        axis.set_title(f"IPv{family} inside the tunnel", loc="left", pad=8)
    packets = next(
        c["packets"] for c in run.manifest["plan"]["campaigns"] if c["kind"] == "delivery"
    )
    subtitle = "\n".join(
        [
            f"topology {run.manifest['topology']}; {deliverysummary.repetitions(found)}; {variant}",
            f"packets received / sent: streams of {packets} from one client of the LAN or from the "
            "device itself, summed over the clients of a LAN; below, the slowest first arrival in "
            "ms (median of the repetitions; the darker the later); grey: a device and its own LAN, "
            "which have no IPsec between them",
            *deliverysummary.verdict_lines(found)[:4],
        ]
    )
    verdict = "all delivered" if found["all_delivered"] else "NOT ALL DELIVERED"
    style.dress(made, run, f"Red multicast through the coalition network: {verdict}", subtitle)
    several = len(deliverysummary.summarise(run)) > 1
    name = "delivery" + (f"_{variant.replace('+', '-')}" if several else "")
    return style.save(made, run, name, folder)


def _cell(axis: Any, at: tuple[int, int], one: dict[str, Any] | None, slowest: float) -> None:
    """Fill one cell: the lighter the sooner, vermilion if anything is missing."""
    x, y = at
    if one is None:
        colour: Any = "#EDEDED"
    elif one["delivered"] < one["streams"]:
        colour = style.VERMILION
    else:
        colour = style.plt.get_cmap("YlGnBu")(
            0.08 + (_WORST - 0.08) * one["first_arrival_ms"] / slowest
        )
    axis.add_patch(
        style.plt.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", lw=1.5)
    )
    if one is None:
        return
    first = one["first_arrival_ms"]
    axis.text(
        x,
        y - 0.13,
        f"{one['received']}/{one['sent']}",
        ha="center",
        va="center",
        fontsize=8.5,
        fontweight="bold" if one["delivered"] < one["streams"] else "normal",
    )
    axis.text(
        x,
        y + 0.22,
        "never" if first is None else f"{first:.1f}",
        ha="center",
        va="center",
        fontsize=7.5,
        color="#333333",
    )


def _label(axis: Any, senders: list[tuple[str, str]], receivers: list[tuple[str, str]]) -> None:
    axis.set_xlim(-0.5, len(receivers) - 0.5)
    axis.set_ylim(len(senders) - 0.5, -0.5)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_xticks(np.arange(len(receivers)), [_name(*one) for one in receivers])
    axis.set_yticks(np.arange(len(senders)), [_name(*one) for one in senders])
    axis.set_xlabel("received at")
    axis.set_ylabel("sent from")
    # A line between LANs and devices.
    for line, places in ((axis.axvline, receivers), (axis.axhline, senders)):
        clients = sum(kind == "client" for kind, _ in places)
        if 0 < clients < len(places):
            line(clients - 0.5, color="#555555", linewidth=1.0)


def _name(kind: str, lan: str) -> str:
    return f"LAN\nof {lan}" if kind == "client" else f"device\n{lan}"
