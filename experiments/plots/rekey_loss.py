"""Red packets lost while other devices join and leave, event by event."""

from __future__ import annotations

from pathlib import Path

from experiments import rekeylosssummary
from experiments.analysis import Run
from experiments.plots import style

_COLOURS = {"per-sender": style.BLUE, "paper": style.VERMILION}
_MARKERS = {"start": "o", "shutdown": "s"}


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if it was measured; return the files."""
    events = rekeylosssummary.events(run)
    if events.empty:
        return []
    found = rekeylosssummary.summarise(run)
    made, (axis,) = style.figure(1, width=9.0, height=5.4)
    groups = list(events.groupby(["variant", "sa_mode", "method"], sort=False))
    for place, ((_, mode, method), rows) in enumerate(groups):
        percent = 100 * rows["lost"] / rows["sent"]
        axis.scatter(
            place + style.spread(len(rows), 0.3),
            percent,
            s=22,
            marker=_MARKERS[str(method)],
            color=_COLOURS[str(mode)],
            alpha=0.5,
            linewidths=0,
            zorder=3,
        )
        lost, expected = int(rows["lost"].sum()), int(rows["sent"].sum())
        axis.annotate(
            f"{lost} of {expected} lost\n{int(rows['duplicated'].sum())} doubled",
            (place, float(percent.max())),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    names = [
        f"{variant}\n{len(rows)} {rekeylosssummary.METHODS[str(method)]}"
        for (variant, _, method), rows in groups
    ]
    axis.set_xticks(range(len(groups)), names)
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.set_ylim(bottom=-0.05, top=max(1.0, axis.get_ylim()[1] * 1.2))
    axis.set_ylabel("packets lost by an event (%)")
    rates = " or ".join(
        dict.fromkeys(str(rate) for data in found.values() for rate in data["rate_pps"])
    )
    subtitle = (
        f"{int(events['senders'].max())} devices stay, send {rates} packets/s each and hear one "
        "another: the highest rate tried that the machine carries\n"
        "every point is one join or graceful leave of another device; all senders at all receivers"
    )
    style.dress(made, run, "Red multicast while others join and leave", subtitle)
    return style.save(made, run, "rekey_loss", folder)
