"""Boot a guest for one command: QEMU's command line, and the directory of the boot."""

import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.vm import layout
from testbed.vm.accelerator import Accelerator, choose_accelerator, processor_options
from testbed.vm.conversation import Conversation, GuestDiedError, Wires, signals_caught
from testbed.vm.image import Image, ensure_image
from testbed.vm.layout import TestbedEnvironmentError
from testbed.vm.shipment import Job, write_shipment

BOOT_ATTEMPTS: Final = 3
KEPT_RUNS: Final = 5
_PORTS: Final = ("out", "err", "ctl")
_KERNEL_OPTIONS: Final = (
    "console=ttyS0 quiet loglevel=3 panic=-1 oops=panic edd=off nokaslr mitigations=off "
    "tsc=reliable maxcpus=1 lpj=10000000 audit=0 random.trust_cpu=on"
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
    *,
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
    argv = ["setpriv", "--pdeathsig", "KILL", *layout.qemu_command()]
    argv += ["-nodefaults", "-no-user-config"]
    argv += ["-machine", "q35", "-display", "none", "-no-reboot"]
    argv += processor_options(accelerator)
    argv += ["-smp", str(min(len(os.sched_getaffinity(0)), 4)), "-m", f"{memory_mib}M"]
    argv += ["-kernel", str(layout.KERNEL / "vmlinuz"), "-initrd", str(image.initrd)]
    argv += ["-append", _KERNEL_OPTIONS, "-serial", f"file:{_escaped(run.console)}"]
    for disk, file in (("root", image.root), ("shipment", run.shipment)):
        drive = f"id={disk},file={_escaped(file)},if=none,format=raw,readonly=on"
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
    """Make the boot's directory; it goes when the guest ended well, and else stays for a while."""
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
    layout.qemu_command()  # before the long work of building an image
    image = ensure_image()
    accelerator = choose_accelerator(image.initrd)
    environment = {**job.environment, "TESTBED_ACCELERATOR": accelerator.value}
    job = Job(job.argv, job.cwd, environment, job.shares)
    with _run_folder() as run, signals_caught() as signals:
        write_shipment(run.shipment, job, layout.PROJECT, layout.VM_CACHE / "compiled")
        for attempt in range(1, BOOT_ATTEMPTS + 1):
            try:
                return _boot_once(
                    image, run, accelerator, memory_mib=memory_mib, job=job, signals=signals
                )
            except GuestDiedError as death:
                # Software emulation before QEMU 8.1 now and then trips over the kernel patching
                # its own code (an `int3` oops), most of all while it boots: such a boot is tried
                # again.
                if death.booted or attempt == BOOT_ATTEMPTS:
                    raise TestbedEnvironmentError(_explain(death, run)) from death
    raise AssertionError("unreachable: the last attempt returns or raises")


def _boot_once(
    image: Image,
    run: Run,
    accelerator: Accelerator,
    *,
    memory_mib: int,
    job: Job,
    signals: socket.socket,
) -> int:
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in _PORTS]
        for end in itertools.chain(*pairs):
            stack.enter_context(end)
        (out, err, control), theirs = zip(*pairs, strict=True)
        ports = [end.fileno() for end in theirs]
        command = qemu_command(image, run, accelerator, memory_mib=memory_mib, job=job, ports=ports)
        with run.qemu_log.open("wb") as log:
            # A session of its own: the terminal's Ctrl-C goes to us, and we tell the guest.
            qemu = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=ports,
                start_new_session=True,
            )
        for end in theirs:
            end.close()
        try:
            return Conversation(qemu, Wires(out, err, control, signals)).follow()
        finally:
            qemu.kill()
            qemu.wait()


def _explain(death: GuestDiedError, run: Run) -> str:
    said = run.qemu_log.read_text(errors="replace").strip().splitlines()
    cause = f" ({said[-1]})" if said else ""
    return f"{death}{cause}; its console log is {os.path.relpath(run.console)}"
