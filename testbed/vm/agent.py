"""Run one command inside the guest and report to the host over virtio serial ports.

Alone in the guest's file system: it imports the standard library only. What the command writes
goes to the ports for output and error as it comes; the control port carries one line a message:
to the host `ready` and `exit N`, from the host `time NANOSECONDS` and `signal N`.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time

JOB = "/etc/testbed/job.json"
PORTS = "/sys/class/virtio-ports"
CHUNK = 65536


def open_ports() -> dict[str, int]:
    """Open the serial ports by the names that the host gave them."""
    ports = {}
    for entry in os.listdir(PORTS):  # noqa: PTH208  # pathlib costs a tenth of a second here
        with open(f"{PORTS}/{entry}/name") as file:  # noqa: PTH123
            name = file.read().strip()
        ports[name] = os.open(f"/dev/{entry}", os.O_RDWR)
    return ports


def write_all(port: int, data: bytes) -> None:
    """Write until nothing is left: a port may take less than it was given."""
    while data:
        data = data[os.write(port, data) :]


def mount_shares(shares: dict[str, str]) -> None:
    """Mount the host's directories where the host has them, written through."""
    for tag, path in shares.items():
        os.makedirs(path, exist_ok=True)  # noqa: PTH103
        options = "trans=virtio,version=9p2000.L,msize=512000,cache=none"
        subprocess.run(["mount", "-t", "9p", "-o", options, tag, path], check=True)


class Agent:
    """Carries bytes between the command and the ports until the command has ended."""

    def __init__(self, ports: dict[str, int], job: dict[str, object]) -> None:
        self._ports = ports
        self._job = job
        self._selector = selectors.DefaultSelector()
        self._pending = b""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int | None:
        """Start the command; return an exit status at once where it cannot be started."""
        job = self._job
        try:
            process = subprocess.Popen(
                job["argv"],  # type: ignore[call-overload]
                cwd=job["cwd"],
                env={**os.environ, **job["environment"]},  # type: ignore[dict-item]
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            write_all(self._ports["testbed.err"], f"testbed: {error}\n".encode())
            return 127 if isinstance(error, FileNotFoundError) else 126
        self._process = process
        for stream, port in ((process.stdout, "testbed.out"), (process.stderr, "testbed.err")):
            assert stream is not None
            self._selector.register(stream.fileno(), selectors.EVENT_READ, self._ports[port])
        control = self._ports["testbed.ctl"]
        self._selector.register(control, selectors.EVENT_READ, None)
        self._selector.register(os.pidfd_open(process.pid), selectors.EVENT_READ, process)
        return None

    def run(self) -> int:
        """Relay until the command ends; return its status as a shell would."""
        status = self.start()
        if status is not None:
            return status
        process = self._process
        assert process is not None
        while process.returncode is None:
            self._relay(None)
        # Daemons it left behind may hold the pipes: only what is already there still counts.
        while self._relay(0):
            pass
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _relay(self, timeout: float | None) -> bool:
        """Handle what is ready; tell whether any output was carried."""
        carried = False
        for key, _ in self._selector.select(timeout):
            if isinstance(key.data, int):
                data = os.read(key.fd, CHUNK)
                if data:
                    write_all(key.data, data)
                    carried = True
                else:
                    self._selector.unregister(key.fd)
            elif key.data is None:
                self._obey(os.read(key.fd, CHUNK))
            else:
                key.data.wait()
                self._selector.unregister(key.fd)
        return carried

    def _obey(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            verb, _, argument = line.partition(b" ")
            if verb == b"signal" and self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, int(argument))


def set_clock(control: int) -> None:
    """Take the host's time of day: the guest's clock chip knows whole seconds only."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(control, 1)
    time.clock_settime_ns(time.CLOCK_REALTIME, int(line.split()[1]))


def main() -> int:
    """Run the job that the host left and report its exit status."""
    ports = open_ports()
    control = ports["testbed.ctl"]
    with open(JOB) as file:  # noqa: PTH123
        job = json.load(file)
    write_all(control, b"ready\n")
    set_clock(control)
    mount_shares(job["shares"])
    status = Agent(ports, job).run()
    write_all(control, f"exit {status}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
