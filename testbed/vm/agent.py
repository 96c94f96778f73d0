"""Run one command inside the guest and report to the host over virtio serial ports.

Alone in the guest's file system, and sparing with imports: each costs a tenth of a second there.
What the command writes goes to the ports for output and error as it comes; the control port
carries one line a message: to the host `ready` and `exit N`, from the host `time NANOSECONDS` and
`signal N`.
"""

import contextlib
import os
import select
import sys
import time

JOB = "/etc/testbed"
PORTS = "/sys/class/virtio-ports"
CHUNK = 65536
CANNOT_START = 127


def read_fields(name: str) -> list[str]:
    """Read one of the job's files: fields, each ended by a zero byte."""
    descriptor = os.open(f"{JOB}/{name}", os.O_RDONLY)
    content = os.read(descriptor, os.fstat(descriptor).st_size)
    os.close(descriptor)
    return content.decode(errors="surrogateescape").split("\0")[:-1]


def open_ports() -> dict[str, int]:
    """Open the serial ports by the names that the host gave them."""
    ports = {}
    for entry in os.listdir(PORTS):  # noqa: PTH208  # pathlib is one of those imports
        with open(f"{PORTS}/{entry}/name") as file:  # noqa: PTH123
            ports[file.read().strip()] = os.open(f"/dev/{entry}", os.O_RDWR)
    return ports


def write_all(port: int, data: bytes) -> None:
    """Write until nothing is left: a port may take less than it was given."""
    while data:
        data = data[os.write(port, data) :]


def set_clock(control: int) -> None:
    """Take the host's time of day: the guest's clock chip knows whole seconds only."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(control, 1)
    time.clock_settime_ns(time.CLOCK_REALTIME, int(line.split()[1]))


def start(argv: list[str], folder: str, environment: dict[str, str]) -> tuple[int, int, int]:
    """Start the command in a session of its own.

    Returns:
        Its process id, and the read ends of its output and its error.
    """
    out, err = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.setsid()
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(out[1], 1)
            os.dup2(err[1], 2)
            os.chdir(folder)
            os.execvpe(argv[0], argv, environment)  # noqa: S606  # the host's words, as they are
        except OSError as error:
            os.write(2, f"testbed: {argv[0]}: {error.strerror}\n".encode())
        os._exit(CANNOT_START)
    os.close(out[1])
    os.close(err[1])
    return process, out[0], err[0]


class Relay:
    """Carries bytes between the command and the ports until the command has ended."""

    def __init__(self, process: int, sinks: dict[int, int], control: int) -> None:
        self._process = process
        self._ended = os.pidfd_open(process)
        self._sinks = sinks
        self._control = control
        self._pending = b""
        self._poll = select.poll()
        for source in (*sinks, control, self._ended):
            self._poll.register(source, select.POLLIN)

    def run(self) -> int:
        """Relay until the command ends; return its status as a shell would."""
        while not self._serve(None):
            pass
        _, status = os.waitpid(self._process, 0)
        # Daemons it left behind may hold the pipes: only what is already there still counts.
        self._poll.unregister(self._ended)
        while self._poll.poll(0) and self._sinks:
            self._serve(0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _serve(self, timeout: int | None) -> bool:
        """Handle what is ready; tell whether the command has ended."""
        ready = [source for source, _ in self._poll.poll(timeout)]
        for source in ready:
            if source in self._sinks:
                data = os.read(source, CHUNK)
                write_all(self._sinks[source], data)
                if not data:
                    self._poll.unregister(source)
                    del self._sinks[source]
            elif source == self._control:
                self._obey(os.read(source, CHUNK))
        return self._ended in ready

    def _obey(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            verb, _, argument = line.partition(b" ")
            if verb == b"signal":
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.killpg(self._process, int(argument))


def main() -> int:
    """Run the job that the host left and report its exit status."""
    ports = open_ports()
    control = ports["testbed.ctl"]
    write_all(control, b"ready\n")
    set_clock(control)
    environment = dict(field.split("=", 1) for field in read_fields("environment"))
    folder, *argv = read_fields("command")
    process, out, err = start(argv, folder, environment)
    sinks = {out: ports["testbed.out"], err: ports["testbed.err"]}
    status = Relay(process, sinks, control).run()
    write_all(control, f"exit {status}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
