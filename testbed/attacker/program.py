"""The attacker's process: taps every black cable, and sends what it is told to on its own.

Run as ``program.py SETTINGS.json``. It opens its taps where the switch is, moves to a network
namespace of its own, and answers a control socket like the daemons' (`protocol.daemon.control`). It
computes only when nobody else wants to (SCHED_IDLE): on the machines of a real network an attacker
takes no processor time from its victims, here it must not either.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from random import Random
from typing import Any, Final

from protocol.core.errors import LocalError
from protocol.daemon.control import ControlServer
from protocol.daemon.loop import Loop, Signals, watch_parent
from testbed.attacker.floods import FLOODS
from testbed.attacker.forger import Forger, Holder
from testbed.attacker.frames import to_nobody
from testbed.attacker.scene import Channels, Scene
from testbed.attacker.weapons import EX_MEMBER, FOREIGN, MEMBER, OUTSIDER, WEAPONS, Armoury, Weapon
from testbed.namespaces import CLONE_NEWNET, unshare

INTERFACE: Final = "atk0"

ALL: Final = {weapon.name: weapon for weapon in (*WEAPONS, *FLOODS)}

BATCH: Final = 16
TAP_BATCH: Final = 64
BITS_PER_S_MAX: Final = 80_000_000
"""Of the cable's 100 Mbit/s: beyond, the switch's queue drops, whatever anybody's protocol does."""

TIMER: Final = "attack"
NS: Final = 1_000_000_000

_ETH_P_ALL: Final = 3
_SOL_PACKET: Final = 263
_PACKET_IGNORE_OUTGOING: Final = 23
_FRAME_MAX: Final = 65536
_BUFFER_BYTES: Final = 1 << 22


class Attacker:
    """Answers commands, listens, and sends.

    Args:
        settings: ``channels``, ``own`` (address), ``taps`` (interfaces), ``control`` (path of the
            socket), ``seed``, and the paths ``ex_member``, ``member``, ``psk``, ``policy`` of what
            it has copied.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._loop = Loop()
        self._draws = Random(settings["seed"])  # noqa: S311 - attacks, not secrets
        self._scene = Scene(Channels.from_json(settings["channels"]))
        self._own = settings_address(settings)
        self._taps = [open_tap(name) for name in settings["taps"]]
        unshare(CLONE_NEWNET)
        self._sender: socket.socket
        self._forgers: dict[str, Forger] = {}
        self._weapon: Weapon | None = None
        self._targets: tuple[IPv6Address, ...] = ()
        self._mute = False
        self._frames: list[bytes] = []
        self._clear()

    def run(self) -> None:
        """Serve until told to end."""
        handlers = {
            "open": self._on_open,
            "begin": self._on_begin,
            "end": self._on_end,
            "keep": self._on_keep,
            "status": self._on_status,
            "captured": self._on_captured,
        }
        for tap in self._taps:
            self._loop.add_reader(tap.fileno(), partial(self._listen, tap))
        signals = Signals(self._loop, self._loop.stop)
        watch_parent(self._loop, self._loop.stop)
        control = ControlServer(Path(self._settings["control"]), self._loop, handlers)
        try:
            self._loop.run()
        finally:
            control.close()
            signals.close()

    # Listening.

    def _listen(self, tap: socket.socket) -> None:
        for _ in range(TAP_BATCH):
            try:
                self._scene.observe(tap.recv(_FRAME_MAX))
            except BlockingIOError:
                return

    # Commands.

    def _on_open(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Open the sockets to send by; the cables are there by now."""
        self._sender = open_sender(INTERFACE)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return {}

    def _on_begin(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin an attack, on all or on ``targets``; ``mute``: the same frames, but to nobody."""
        weapon = ALL.get(request.get("attack", ""))
        if weapon is None:
            raise LocalError(f"no such attack (known: {', '.join(ALL)})")
        self._clear()
        self._weapon = weapon
        self._mute = bool(request.get("mute"))
        self._targets = tuple(IPv6Address(text) for text in request.get("targets", ()))
        rate = request.get("rate_pps", weapon.rate_pps)
        self._gap_ns = 0 if not rate else int(NS / rate)
        self._renew()
        self._began_ns = self._due_ns = time.monotonic_ns()
        self._loop.set_timer(TIMER, 0, self._send)
        return {"frames": len(self._frames)}

    def _on_end(self, _request: dict[str, Any]) -> dict[str, Any]:
        """End it; say what was sent and how fast."""
        self._loop.cancel_timer(TIMER)
        seconds = (time.monotonic_ns() - self._began_ns) / NS
        report = {
            "sent": self._sent,
            "bytes": self._bytes,
            "refused": self._refused,
            "seconds": seconds,
            "rate_pps": self._sent / seconds if seconds > 0 else 0.0,
            "mbit_per_s": 8 * self._bytes / seconds / 1e6 if seconds > 0 else 0.0,
        }
        self._weapon, self._frames = None, []
        return report

    def _on_keep(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Keep what was recorded so far as the old session, and begin the captures anew."""
        self._scene.session = list(self._scene.recorded)[-1000:]
        self._scene.esp.clear()
        self._scene.notices.clear()
        return {"frames": len(self._scene.session)}

    def _on_status(self, _request: dict[str, Any]) -> dict[str, Any]:
        scene = self._scene
        epoch = scene.epoch
        return {
            "heard": scene.heard,
            "said": [[daemon, str(who), count] for (daemon, who), count in scene.said.items()],
            "recorded": len(scene.recorded),
            "esp": len(scene.esp),
            "notices": len(scene.notices),
            "devices": [str(address) for address in scene.known],
            "epoch": None if epoch is None else str(epoch),
            "tree": scene.tree is not None,
            "sent": self._sent,
        }

    def _on_captured(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Hand out the newest ESP packets and notices."""
        return {
            "esp": [frame.hex() for frame in list(self._scene.esp)[-200:]],
            "notices": [[str(who), data.hex()] for who, data in self._scene.notices],
        }

    # Sending.

    def _clear(self) -> None:
        self._sent = self._bytes = self._refused = self._next = 0
        self._gap_ns = self._began_ns = self._due_ns = self._renewed_ns = 0

    def _renew(self) -> None:
        assert self._weapon is not None
        self._renewed_ns = time.monotonic_ns()
        armoury = Armoury(
            self._scene,
            self._forger(self._weapon.who),
            self._own,
            self._draws,
            time.time_ns(),
            read_secret(self._settings.get("psk")),
            read_bytes(self._settings.get("policy")),
            self._targets,
        )
        made = self._weapon.make(armoury)
        if self._mute:
            made = [to_nobody(frame) for frame in made]
        if made:
            self._frames, self._next = made, 0

    def _forger(self, who: str) -> Forger:
        if who not in self._forgers:
            self._forgers[who] = self._make_forger(who)
        return self._forgers[who]

    def _make_forger(self, who: str) -> Forger:
        if who == FOREIGN:
            return Holder.foreign(self._draws, self._own)
        if who == OUTSIDER:
            return Forger(self._draws)
        copied = who == MEMBER
        key = {EX_MEMBER: "ex_member", MEMBER: "member"}[who]
        address = settings_address(self._settings, f"{key}_address")
        return Holder.of(self._draws, Path(self._settings[key]), address, copied=copied)

    def _send(self, _name: str) -> None:
        """Send a batch and come back at once, or when the next one is due."""
        weapon, now_ns = self._weapon, time.monotonic_ns()
        if weapon is None:
            return
        if now_ns - self._renewed_ns > weapon.renew_s * NS:
            self._renew()
        send, frames = self._sender.send, self._frames
        for _ in range(BATCH if frames else 0):
            if self._due_ns > now_ns:
                break
            frame = frames[self._next % len(frames)]
            self._next += 1
            try:
                send(frame)
                self._sent += 1
                self._bytes += len(frame)
            except OSError:
                self._refused += 1
            bits_ns = len(frame) * 8 * NS // BITS_PER_S_MAX
            # What could not be sent in time is not made up for: it is a rate, not a debt.
            self._due_ns = max(self._due_ns, now_ns - NS // 100) + max(self._gap_ns, bits_ns)
        wake_ns = self._due_ns if frames else now_ns + NS // 20
        self._loop.set_timer(TIMER, wake_ns, self._send)


def settings_address(settings: dict[str, Any], name: str = "own") -> IPv6Address:
    """Return an address of the settings."""
    return IPv6Address(settings[name])


def read_secret(path: str | None) -> bytes:
    """Read a file of hexadecimal digits; nothing if there is none."""
    return bytes.fromhex(Path(path).read_text(encoding="ascii").strip()) if path else b""


def read_bytes(path: str | None) -> bytes:
    """Read a file; nothing if there is none."""
    return Path(path).read_bytes() if path else b""


def open_tap(interface: str) -> socket.socket:
    """Listen to what a device sends into a port of the switch."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sock.bind((interface, _ETH_P_ALL))  # by kind, only what a bridge leaves would come
    return sock


def open_sender(interface: str) -> socket.socket:
    """Return a socket that sends frames as they are."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((interface, 0))
    return sock


def main() -> None:
    """Read the settings and serve."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Attacker(settings).run()


if __name__ == "__main__":
    main()
