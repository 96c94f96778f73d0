"""Networks that stay up: who holds them, and how to find, ask and end them.

A network is held by one process in the background: natively it is a run (`testbed.session`) that
builds the fleet; for the virtual machine it is a process that boots the guest, in which the same
code holds the fleet and serves the same mailbox through a shared directory.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from testbed import session
from testbed.environment import EnvironmentKind, rerun_in_vm
from testbed.environment import choose as choose_environment
from testbed.errors import DeadlineError, TestbedError
from testbed.holder import Holder, Mailbox
from testbed.isolation import EXIT_INTERRUPTED
from testbed.processes import last_line
from testbed.runs import Run, all_runs, new_run_id
from testbed.spec import Topology
from testbed.vm.layout import TestbedEnvironmentError
from testbed.wait import wait_until

KIND: Final = "network"
READY_FILE: Final = "ready"
LOG_FILE: Final = "holder.log"
_READY_DEADLINE_S: Final = 180.0
_VM_READY_DEADLINE_S: Final = 600.0
_DOWN_DEADLINE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What ``testbed up`` was asked for; fields as the command's options."""

    topology: str
    devices: int | None = None
    env: str = "auto"
    sa_backend: str = "netlink"
    sa_mode: str = "per-sender"
    mike_mode: str = "ka"
    parked: bool = False
    keep: Path | None = None
    capture: bool = False
    learn: bool = False

    def arguments(self) -> list[str]:
        """Return the command's arguments for the same network, natively."""
        words = [self.topology, "--env", "native"]
        words += ["--sa-backend", self.sa_backend, "--sa-mode", self.sa_mode]
        words += ["--mike-mode", self.mike_mode]
        if self.devices is not None:
            words += ["--devices", str(self.devices)]
        if self.keep is not None:
            words += ["--keep", str(self.keep.resolve())]
        words += ["--learn"] * self.learn
        return words + ["--parked"] * self.parked + ["--capture"] * self.capture

    def in_vm(self) -> bool:
        """Choose where to run.

        Raises:
            TestbedEnvironmentError: it cannot be had here.
        """
        needs_esp = self.sa_backend != "memory"
        choice = choose_environment(EnvironmentKind(self.env), needs_esp=needs_esp)
        return choice.kind is EnvironmentKind.VM


def hold_here(topology: Topology, options: UpOptions, mailbox: Path) -> None:
    """Build the network in this process and serve the mailbox until told to go down."""
    from testbed.fleet import Fleet, FleetOptions
    from testbed.sourcespecific import source_specific

    fleet_options = FleetOptions(
        keep=options.keep,
        sa_backend=options.sa_backend,
        sa_mode=options.sa_mode,
        mike={"mode": options.mike_mode},
        # PF_KEY has no xfrm interface, through which unicast between red LANs goes.
        ipsec={"unicast": "off" if options.sa_backend == "pfkey" else "group"},
        capture=options.capture,
        pre_deployed=not options.learn,
    )
    if topology.routers and not topology.gateways:
        topology, fleet_options = source_specific(topology, fleet_options)
    with Fleet(topology, fleet_options) as fleet:
        if not options.parked:
            for device in fleet.devices:
                fleet.start(device)
        (mailbox / READY_FILE).touch()
        Holder(fleet, mailbox).serve()


def hold_in_foreground(topology: Topology, options: UpOptions) -> None:
    """Hold the network until Ctrl-C; the other commands reach it meanwhile."""
    in_vm = options.in_vm()
    run = Run.create(sys.argv) if in_vm else session.begin(sys.argv)
    try:
        mailbox = _announce(run, in_vm=in_vm)
        sys.stderr.write(f"run {run.run_id}: building; Ctrl-C takes it down\n")
        _hold(topology, options, mailbox, in_vm=in_vm)
    finally:
        if in_vm:
            run.reap()


def hold_in_background(topology: Topology, options: UpOptions) -> Run:
    """Hold the network in a process of its own; return when it is up.

    Raises:
        TestbedError: it did not come up; the holder's own words.
    """
    in_vm = options.in_vm()
    run = Run(new_run_id())
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        os.close(reader)
        _be_holder(topology, options, run.run_id, writer, in_vm=in_vm)
    os.close(writer)
    ready = run.directory / "mailbox" / READY_FILE

    def settled() -> bool:
        return ready.exists() or bool(select.select([reader], [], [], 0)[0])

    deadline_s = _VM_READY_DEADLINE_S if in_vm else _READY_DEADLINE_S
    try:
        wait_until(settled, deadline_s, "the network does not come up")
    except (DeadlineError, KeyboardInterrupt):
        take_down(run)
        raise
    if not ready.exists():
        with os.fdopen(reader, encoding="utf-8", errors="replace") as stream:
            raise TestbedError(stream.read().strip() or "the holder of the network was killed")
    return run


def networks() -> list[Run]:
    """Return the networks that are up, oldest first."""
    return [run for run in all_runs() if run.record().get("kind") == KIND and run.alive()]


def choose(run_id: str | None) -> Run:
    """Return the network asked for, or the only one.

    Raises:
        TestbedError: there is none, or one must be named.
    """
    found = networks()
    if run_id is not None:
        found = [run for run in found if run.run_id == run_id]
    if not found:
        which = f"no network {run_id} is up" if run_id else "no network is up"
        raise TestbedError(f"{which}; 'testbed up measurement' builds one")
    if len(found) > 1:
        names = ", ".join(run.run_id for run in found)
        raise TestbedError(f"several networks are up: {names}; choose with --run")
    return found[0]


def mailbox_of(run: Run) -> Mailbox:
    """Return the way to ask a network."""
    return Mailbox(run.directory / "mailbox", run.alive)


def take_down(run: Run) -> str:
    """End a network, by asking if it answers, else by its run id; return what was done."""
    try:
        mailbox_of(run).ask("down")
        wait_until(
            lambda: not run.alive(), _DOWN_DEADLINE_S, "the network does not end", pause_s=0.05
        )
    except (TestbedError, DeadlineError):
        pid = run.record().get("pid")
        if run.alive() and isinstance(pid, int):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # the kernel ends its namespaces with it
        gone = run.reap()
        return f"did not answer; killed, {gone.processes} processes removed"
    run.reap()
    return "down"


def _announce(run: Run, *, in_vm: bool) -> Path:
    mailbox = run.directory / "mailbox"
    mailbox.mkdir(mode=0o700)
    run.update(kind=KIND, in_vm=in_vm)
    return mailbox


def _hold(topology: Topology, options: UpOptions, mailbox: Path, *, in_vm: bool) -> None:
    if not in_vm:
        hold_here(topology, options, mailbox)
        return
    argv = [sys.executable, "-m", "testbed.cli", "up", *options.arguments()]
    writable = [mailbox] + ([options.keep] if options.keep is not None else [])
    code = rerun_in_vm([*argv, "--mailbox", str(mailbox)], writable=writable)
    if code != 0:
        raise TestbedError(f"the network in the virtual machine ended with exit status {code}")


def _be_holder(
    topology: Topology, options: UpOptions, run_id: str, writer: int, *, in_vm: bool
) -> NoReturn:
    """Be the background process: detached, with a log; say what went wrong through the pipe."""
    code = 1
    run: Run | None = None
    try:
        os.setsid()
        _redirect(Path(os.devnull))  # the warden must not hold the caller's terminal or pipe
        run = Run.create(sys.argv, run_id) if in_vm else session.begin(sys.argv, run_id)
        log = run.directory / LOG_FILE
        _redirect(log)
        _hold(topology, options, _announce(run, in_vm=in_vm), in_vm=in_vm)
        code = 0
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except (TestbedError, TestbedEnvironmentError, OSError) as error:
        inner = last_line(log) if in_vm and run is not None else ""
        text = inner.removeprefix("testbed: error: ") or str(error)
        os.write(writer, text.encode())
    except Exception:
        traceback.print_exc()
        os.write(writer, traceback.format_exc().strip().splitlines()[-1].encode())
    finally:
        if in_vm and run is not None:
            run.reap()
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: Path) -> None:
    """Send standard output and error to a file, and read from nothing."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    source = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((source, target, target)):
        os.dup2(descriptor, number)
    os.close(target)
    os.close(source)
