"""What every daemon process has: files, signals, loop, control socket, idle work, orderly end."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

from protocol.core.engine import Engine
from protocol.core.errors import LocalError
from protocol.daemon.clock import Clock
from protocol.daemon.control import ControlServer, Handler
from protocol.daemon.logfile import LogFile
from protocol.daemon.loop import Loop, Signals, watch_parent
from protocol.daemon.runtime import Runtime
from protocol.daemon.tables import RunFiles
from protocol.daemon.trace import TraceWriter

GARBAGE_OBJECTS = 20_000
"""The cycle collector runs when idle once this many objects were made, never in a join."""


class DaemonProcess:
    """One daemon process around one engine.

    Subclasses say which engine, which sockets and which effects.

    Attributes:
        daemon: ``idpd``, ``miked`` or ``mproxyd``.
        files: whose daemon this is, and where its files lie.
        loop: the event loop.
        clock: both clocks.
        engine: set by `open_all`.
        runtime: set by `open_all`.
    """

    daemon: ClassVar[str]
    engine: Engine
    runtime: Runtime

    def __init__(
        self,
        files: RunFiles,
        clock: Clock,
        *,
        recording: bool = False,
        exit_with_parent: bool = False,
        log_level: str = "info",
    ) -> None:
        self.files = files
        self.clock = clock
        self.loop = Loop()
        self._recording = recording
        self._exit_with_parent = exit_with_parent
        self._log_level = log_level

    # What a subclass provides.

    def open_all(self, stack: ExitStack) -> None:
        """Make engine and runtime, open what else is needed; ``stack`` closes it."""
        raise AssertionError(self)

    def begin(self) -> None:
        """Do what is to be done before the control socket says that we are ready."""

    def end(self) -> None:
        """Leave nothing behind; idempotent."""

    def more_commands(self) -> dict[str, Handler]:
        """Return further control commands."""
        return {}

    def more_counters(self) -> Mapping[str, int]:
        """Return further counters for ``status``."""
        return {}

    def more_status(self) -> dict[str, Any]:
        """Return further fields for ``status``; ``state`` is among them."""
        return {}

    # Life.

    def run(self) -> int:
        """Open everything, serve until told to end, leave nothing behind; return the status."""
        files = self.files
        files.check()
        os.umask(0o077)
        with ExitStack() as stack:
            trace_file = files.trace_file(self.daemon)
            self.trace = TraceWriter(trace_file, files.name, self.daemon, self.clock)
            stack.callback(self.trace.close)
            self.log = LogFile(files.log_file(self.daemon), self.clock, level=self._log_level)
            stack.callback(self.log.close)
            signals = Signals(self.loop, self.loop.stop)
            stack.callback(signals.close)
            try:
                self._serve()
            except LocalError as error:
                self.log.write("error", str(error))
                raise
        return 0

    def _serve(self) -> None:
        with ExitStack() as stack:
            self.open_all(stack)
            self.loop.idle_wanted = self.idle_wanted
            self.loop.on_idle = self.idle
            if self._exit_with_parent:
                watch_parent(self.loop, self.loop.stop)
            self.begin()
            gc.freeze()
            self.log.write("info", f"{self.daemon} of {self.files.name} is ready")
            self.control = ControlServer(
                self.files.control_socket(self.daemon), self.loop, self._commands()
            )
            stack.callback(self.control.close)
            stack.callback(self.end)
            self.loop.run()

    def make_runtime(self, engine: Engine) -> Runtime:
        """Return a runtime for the engine, with this process's clock, trace and log."""
        return Runtime(engine, self.clock, self.trace, self.log, recording=self._recording)

    # Idle.

    def idle_wanted(self) -> bool:
        """Say whether an idle moment has something to do."""
        return self.trace.pending or self.log.pending or gc.get_count()[0] > GARBAGE_OBJECTS

    def idle(self) -> None:
        """Write out trace and log; collect garbage if there is much."""
        self.trace.flush()
        self.log.flush()
        if gc.get_count()[0] > GARBAGE_OBJECTS:
            gc.collect()

    # Control commands.

    def _commands(self) -> dict[str, Handler]:
        return {
            "status": self._on_status,
            "flush": self._on_flush,
            "shutdown": self._on_shutdown,
            **self.more_commands(),
        }

    def _on_status(self, _request: dict[str, Any]) -> dict[str, Any]:
        return self.status()

    def status(self) -> dict[str, Any]:
        """Describe daemon and engine as plain JSON values; never key material."""
        engine = self.engine.status(self.clock.now())
        counters: Counter[str] = Counter(engine.pop("counters", {}))
        counters.update(self.runtime.counters)
        counters.update(self.more_counters())
        losses = {
            "trace.lost": self.trace.lost_total,
            "log.lost": self.log.lost_total,
            "log.suppressed": self.log.suppressed_total,
            "control.rejected": self.control.rejected_total,
        }
        counters.update({name: count for name, count in losses.items() if count})
        return {
            **engine,
            "daemon": self.daemon,
            "device": self.files.name,
            "pid": os.getpid(),
            "counters": dict(sorted(counters.items())),
            "trace_error": self.trace.error,
            **self.more_status(),
        }

    def _on_flush(self, _request: dict[str, Any]) -> dict[str, Any]:
        written = self.trace.flush()
        self.log.flush()
        if not written:
            raise LocalError(f"the trace cannot be written: {self.trace.error}")
        return {}

    def _on_shutdown(self, _request: dict[str, Any]) -> dict[str, Any]:
        self.end()
        self.loop.stop()
        return {"state": self.more_status()["state"]}
