"""The choice between FRR and static routes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from testbed.namespaces import NetNamespace
from testbed.processes import ProcessTable
from testbed.routing.base import Routing, RoutingOptions
from testbed.routing.frr import FrrRouting
from testbed.routing.kernel import RoutingError
from testbed.routing.plan import RouterPlan
from testbed.routing.programs import find_frr, find_smcroute
from testbed.routing.static import StaticRouting

KINDS: Final = ("auto", "frr", "static")


def make_routing(
    plans: Sequence[RouterPlan],
    namespaces: Mapping[str, NetNamespace],
    pid_of: Callable[[str], int],
    processes: ProcessTable,
    directory: Path,
    *,
    options: RoutingOptions | None = None,
) -> Routing:
    """Return FRR, or static routes where it is not built, which a line on standard error says.

    The arguments are those of `Routing`.

    Raises:
        RoutingError: the programs are not there, or the plans cannot be carried out.
    """
    chosen = options or RoutingOptions()
    if chosen.kind not in KINDS:
        raise RoutingError(f"routing {chosen.kind!r} is none of {', '.join(KINDS)}")
    run = (plans, namespaces, pid_of, processes, directory)
    frr = find_frr() if chosen.kind != "static" else None
    if frr is not None:
        return FrrRouting(*run, programs=frr, options=chosen)
    if chosen.kind == "frr":
        raise RoutingError("FRR is not built; run 'make setup', or choose static routes")
    smcroute = find_smcroute()
    if smcroute is None:
        raise RoutingError("neither FRR nor smcroute is there to route multicast; run 'make setup'")
    routing = StaticRouting(*run, programs=smcroute, options=chosen)
    sys.stderr.write(f"testbed: static multicast routes: {routing.because}\n")
    return routing
