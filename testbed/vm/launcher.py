"""Boot a guest, carry its command's output, status and interruption, and clean up after it."""

import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.vm import layout
from testbed.vm.accelerator import Accelerator, choose_accelerator, processor_options
from testbed.vm.image import Image, ensure_image
from testbed.vm.layout import TestbedEnvironmentError
from testbed.vm.shipment import Job, write_shipment

BOOT_SECONDS: Final = 180
CLEAN_UP_SECONDS: Final = 60
INTERRUPTED: Final = 130
KEPT_RUNS: Final = 5
_CHUNK: Final = 65536
_PORTS: Final = ("out", "err", "ctl")
_KERNEL_OPTIONS: Final = (
    "console=ttyS0 quiet loglevel=3 panic=-1 oops=panic edd=off nokaslr mitigations=off "
    "tsc=reliable audit=0 random.trust_cpu=on"
)


@dataclass(frozen=True)
class Run:
    """One boot's own directory."""

    folder: Path

    @property
    def console(self) -> Path:
        """What the guest's kernel said."""
        return self.folder / "console.log"

    @property
    def shipment(self) -> Path:
        """The archive with the project and the job."""
        return self.folder / "shipment.tar"

    @property
    def qemu_log(self) -> Path:
        """What QEMU itself said."""
        return self.folder / "qemu.log"


def qemu_command(
    image: Image,
    run: Run,
    accelerator: Accelerator,
    memory_mib: int,
    job: Job,
    ports: Sequence[int],
) -> list[str]:
    """Return QEMU's command line.

    Args:
        image: What the guest boots from.
        run: The boot's own directory.
        accelerator: How the guest's instructions are run.
        memory_mib: The guest's memory.
        job: What the guest runs; its shares become 9p devices.
        ports: Connected sockets for output, error and control.
    """
    argv = ["setpriv", "--pdeathsig", "KILL", layout.QEMU, "-nodefaults", "-no-user-config"]
    argv += ["-machine", "q35", "-display", "none", "-no-reboot"]
    argv += processor_options(accelerator)
    argv += ["-smp", str(min(len(os.sched_getaffinity(0)), 4)), "-m", f"{memory_mib}M"]
    argv += ["-kernel", str(layout.KERNEL / "vmlinuz"), "-initrd", str(image.initrd)]
    argv += ["-append", _KERNEL_OPTIONS, "-serial", f"file:{_escaped(run.console)}"]
    for disk, path in (("root", image.root), ("shipment", run.shipment)):
        drive = f"id={disk},file={_escaped(path)},if=none,format=raw,readonly=on"
        argv += ["-drive", drive, "-device", f"virtio-blk-pci,drive={disk}"]
    for tag, path in job.shares.items():
        argv += ["-fsdev", f"local,id={tag},path={_escaped(path)},security_model=none"]
        argv += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    argv += ["-device", "virtio-serial-pci"]
    for name, port in zip(_PORTS, ports, strict=True):
        argv += ["-chardev", f"socket,id={name},fd={port}"]
        argv += ["-device", f"virtserialport,chardev={name},name=testbed.{name}"]
    return argv


def _escaped(path: Path | str) -> str:
    return str(path).replace(",", ",,")


@contextmanager
def _run_folder() -> Iterator[Run]:
    """Make the boot's directory; it goes when the guest ended well and stays, for a while, if not."""
    runs = layout.VM_CACHE / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for old in sorted(runs.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT_RUNS]:
        if not Path("/proc", old.name).exists():
            shutil.rmtree(old, ignore_errors=True)
    run = Run(runs / str(os.getpid()))
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir()
    try:
        yield run
    finally:
        run.shipment.unlink(missing_ok=True)
    shutil.rmtree(run.folder)


def run_guest(job: Job, memory_mib: int) -> int:
    """Boot a guest, run the job in it, and return the job's exit status.

    SIGINT and SIGTERM interrupt the job once it runs; a second one, or one before it runs, ends
    the guest at once.

    Raises:
        TestbedEnvironmentError: When the guest cannot be booted, or dies before the job ends.
    """
    if shutil.which(layout.QEMU) is None:
        raise TestbedEnvironmentError(
            f"{layout.QEMU} (Debian package qemu-system-x86) is missing; run 'make setup'"
        )
    image = ensure_image()
    accelerator = choose_accelerator(image)
    environment = {**job.environment, "TESTBED_ACCELERATOR": accelerator.value}
    job = Job(job.argv, job.cwd, environment, job.shares)
    with _run_folder() as run, ExitStack() as stack:
        write_shipment(run.shipment, job, layout.PROJECT, layout.VM_CACHE / "compiled")
        ours, theirs = zip(*(socket.socketpair() for _ in _PORTS), strict=True)
        for end in (*ours, *theirs):
            stack.enter_context(end)
        signals = stack.enter_context(_signals_caught())
        descriptors = [end.fileno() for end in theirs]
        with run.qemu_log.open("wb") as log:
            # A session of its own: the terminal's Ctrl-C goes to us, and we tell the guest.
            qemu = subprocess.Popen(
                qemu_command(image, run, accelerator, memory_mib, job, descriptors),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
                start_new_session=True,
            )
        for end in theirs:
            end.close()
        guest = _Guest(run, qemu, *ours, signals)
        try:
            return guest.follow()
        finally:
            qemu.kill()
            qemu.wait()


@contextmanager
def _signals_caught() -> Iterator[socket.socket]:
    """Turn SIGINT and SIGTERM into bytes on a socket for as long as the guest lives."""
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
    caught = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: None) for number in caught}
    previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


class _Guest:
    """A running guest: where its bytes go, and when it has to end."""

    def __init__(
        self,
        run: Run,
        qemu: subprocess.Popen[bytes],
        out: socket.socket,
        err: socket.socket,
        control: socket.socket,
        signals: socket.socket,
    ) -> None:
        self._run = run
        self._qemu = qemu
        self._control = control
        self._pending = b""
        self._ready = False
        self._interrupted = False
        self._status: int | None = None
        self._deadline: float | None = time.monotonic() + BOOT_SECONDS
        self._selector = selectors.DefaultSelector()
        self._sinks: dict[int, int | None] = {out.fileno(): 1, err.fileno(): 2}
        for source, handler in (
            (out, self._relay),
            (err, self._relay),
            (control, self._listen),
            (signals, self._interrupt),
        ):
            self._selector.register(source, selectors.EVENT_READ, handler)
        self._open_ports = 3

    def follow(self) -> int:
        """Serve the guest until it is off; return the exit status of its command."""
        while self._status is None and self._open_ports:
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                return self._give_up()
            self._serve(left)
        # The status came last: what the command wrote is in our sockets, and nothing else is due.
        while self._open_ports and self._serve(0):
            pass
        if self._status is not None:
            return self._status
        if self._interrupted:
            return INTERRUPTED
        raise self._death("the guest died before its command ended")

    def _serve(self, timeout: float | None) -> bool:
        """Handle what is ready; tell whether anything was."""
        events = self._selector.select(timeout)
        for key, _ in events:
            if key.data(key.fileobj):
                self._selector.unregister(key.fileobj)
                self._open_ports -= 1
        return bool(events)

    def _give_up(self) -> int:
        """End the wait: the deadline has passed, of booting or of cleaning up."""
        if not self._interrupted:
            raise self._death(f"the guest did not boot in {BOOT_SECONDS} s")
        print(
            f"testbed: the interrupted command had {CLEAN_UP_SECONDS} s to clean up: guest killed",
            file=sys.stderr,
        )
        return INTERRUPTED

    def _death(self, what: str) -> TestbedEnvironmentError:
        said = self._run.qemu_log.read_text(errors="replace").strip().splitlines()
        console = os.path.relpath(self._run.console)
        cause = f" ({said[-1]})" if said else ""
        return TestbedEnvironmentError(f"{what}{cause}; its console log is {console}")

    def _relay(self, source: socket.socket) -> bool:
        data = source.recv(_CHUNK)
        ended = not data
        sink = self._sinks[source.fileno()]
        while data and sink is not None:
            try:
                data = data[os.write(sink, data) :]
            except BrokenPipeError:
                # Nobody reads any more (`| head`): the command learns it as it would of Ctrl-C.
                self._sinks[source.fileno()] = None
                self._ask_to_stop()
                return False
        return ended

    def _listen(self, control: socket.socket) -> bool:
        data = control.recv(_CHUNK)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            verb, _, argument = line.partition(b" ")
            if verb == b"ready":
                self._ready = True
                self._deadline = None
                control.sendall(b"time %d\n" % time.time_ns())
            elif verb == b"exit":
                self._status = int(argument)
        return not data

    def _interrupt(self, signals: socket.socket) -> bool:
        for _ in signals.recv(_CHUNK):
            if self._interrupted or not self._ready:
                self._interrupted = True
                self._qemu.kill()
                self._qemu.wait()
            else:
                self._ask_to_stop()
        return False

    def _ask_to_stop(self) -> None:
        self._interrupted = True
        self._deadline = time.monotonic() + CLEAN_UP_SECONDS
        with suppress(OSError):
            self._control.sendall(b"signal %d\n" % signal.SIGINT)
