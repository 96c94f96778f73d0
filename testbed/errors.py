"""What the testbed raises on purpose: one sentence that names the cause and the cure."""


class TestbedError(Exception):
    """One line for the user; the command line prints it without a traceback and exits with 1."""

    __test__ = False  # the name is no test class of pytest's


class DaemonDiedError(TestbedError):
    """A process that the run needs ended before it was told to.

    Attributes:
        name: which one, for example ``d3/miked``.
        code: its exit code, negative for a signal.
    """

    def __init__(self, name: str, code: int, detail: str = "") -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        super().__init__(f"{name} {how} unasked" + (f": {detail}" if detail else ""))
        self.name = name
        self.code = code


class DeadlineError(TestbedError):
    """Something awaited did not happen in time; the text says what was seen instead."""
