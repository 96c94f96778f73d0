"""The columns of every CSV file of a run, with their meaning (results/README.md repeats them).

One place for names: the writer, the analysis and the documentation test read them from here.
Times of the clock are UTC nanoseconds of the device named in the row; durations are milliseconds.
"""

from __future__ import annotations

SCHEMA_VERSION = 1

EVENTS: dict[str, str] = {
    "run": "run id",
    "campaign": "`join` or `leave`",
    "variant": "name of the variant, for example `netlink+per-sender`",
    "repetition": "number of the repetition, from 1",
    "step": "number of the step it falls in, 0 for preparation",
    "device": "name of the device",
    "daemon": "`idpd`, `miked`, or `kernel` for what the XFRM observer saw",
    "point": "measurement point (docs/ARCHITECTURE.md) or event name",
    "wall_ns": "UTC ns of the device's clock, not corrected (`kernel`: of the orchestrator's)",
    "mono_ns": "monotonic ns of the machine",
    "epoch": "epoch the event is about, `number-tag`",
    "peer": "address of the device the event is about",
    "kind": "join, leave, restore or restart",
    "serial": "serial number of the local message",
    "trigger_wall_ns": "pre-calculated trigger time (only `t_start`)",
    "detail": "all other fields of the trace line, JSON",
}

STEPS: dict[str, str] = {
    "run": "run id",
    "campaign": "`join` or `leave`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "step": "number of the step, from 1",
    "group_size": "members after the step",
    "subject": "the device that joins or leaves",
    "method": "`start`, `shutdown` (IDP stopped) or `cut` (link cut)",
    "status": "`ok`, `failed` or `not-run` (an earlier step of the repetition broke the group)",
    "reason": "why it is not ok, empty if it is",
    "epoch": "the epoch all devices wrote",
    "trigger_wall_ns": "when the step was triggered, UTC ns",
    "begin_wall_ns": "when the step began, UTC ns of the orchestrator",
    "end_wall_ns": "when its checks were done, UTC ns of the orchestrator",
    "sad_ok": "1 if the SADs read back from all devices agree; empty if not checked",
    "packet_ok": "1 if the check packet arrived decrypted everywhere; empty if not checked",
    "packet_sender": "device that sent the check packet",
    "packet_sendings": "how often it was sent until it had arrived everywhere",
    "sad_wait_ms": "how long the SADs took to agree after the epoch was everywhere",
    "packet_ms": "slowest delivery of the check packet, from its first sending",
    "tm": "device that held the TM role when the step began",
    "handover": "1 if the TM role had to be handed back to the second device before the step",
    "idle_percent": "CPU idle over all cores, from arming the trigger until the epoch was "
    "everywhere",
    "starved": "1 if that is below the plan's floor",
    "expected": "devices that should be members after the step, separated by spaces",
}

PHASES: dict[str, str] = {
    "idp_startup_ms": "joiner's first hello minus its trigger (join only)",
    "idp_to_mike_ms": "JOIN at the joiner's MIKE minus its first hello; LEAVE: at the TM, "
    "received minus sent",
    "mike_ms": "group key at this device minus JOIN (joiner) or LEAVE (TM) received",
    "mike_to_idp_ms": "status received by IDP minus group key computed",
    "delete_ms": "old SA deleted minus status received (mode `paper`; else 0)",
    "write_ms": "multicast SAs of the new epoch written minus the point before",
}

LATENCIES: dict[str, str] = {
    "run": "run id",
    "campaign": "`join` or `leave`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "step": "number of the step, from 1",
    "group_size": "members after the step",
    "subject": "the device that joins or leaves",
    "method": "`start`, `shutdown` or `cut`",
    "device": "the device this row is about",
    "role": "`monitor`, `joiner` (only for a join) or `member`",
    "epoch": "epoch of the step",
    **PHASES,
    "total_ms": "written minus trigger; the phases of a join sum to it",
    "detect_ms": "leave: LEAVE signalled at the TM's IDP minus trigger; "
    "join: the joiner entered this device's connectivity table minus trigger",
    "from_detection_ms": "leave: written minus LEAVE signalled at the TM's IDP",
    "join_to_key_ms": "join: group key at this device minus the joiner's first JOIN request sent",
    "kernel_written_difference_ms": "t_written minus the kernel's last notification of an SA of "
    "the epoch at this device",
    "offset_ms": "this device's clock minus the reference clock, already subtracted",
    "clock_bound_ms": "error bound of this row's offsets (both devices' together)",
    "sad_ok": "as in steps.csv",
    "packet_ok": "as in steps.csv",
    "ok": "1 if the step is ok and this device has a total: only then the row counts as measured",
    "flags": "clock-bound, starved, handover, more-epochs, missing:POINT; separated by spaces",
}

CLOCKS: dict[str, str] = {
    "run": "run id",
    "campaign": "`join` or `leave`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "device": "name of the device",
    "when": "`before` or `after` the repetition",
    "offset_ns": "device's clock minus the reference clock (RFC 5905 on-wire exchange)",
    "delay_ns": "round-trip delay of the exchange that was kept (the shortest)",
    "bound_ns": "error bound of the offset: half that delay",
}

SA_WRITES: dict[str, str] = {
    "run": "run id",
    "backend": "`netlink`, `netlink batched`, `pfkey`, `command`, `exec` or `ip -batch`",
    "operation": "`write` (add one SA) or `delete+write` (replace one)",
    "suite": "algorithms of the SA",
    "repetition": "number of the round; all backends take turns within one round",
    "sas": "SAs written in this measurement (more than 1 only if batched)",
    "ms_per_sa": "time per SA in ms",
    "ok": "1 if the kernel acknowledged",
    "reason": "why not",
}

FILES: dict[str, dict[str, str]] = {
    "events.csv": EVENTS,
    "latencies.csv": LATENCIES,
    "steps.csv": STEPS,
    "clocks.csv": CLOCKS,
    "sa_writes.csv": SA_WRITES,
}
"""The tables of a run; each repetition writes its part of them, then they are merged."""

SUMMARY: dict[str, str] = {
    "schema": "version of this layout",
    "run": "run id",
    "experiment": "name of the plan",
    "environment": "label of environment and accelerator",
    "kernel_sas": "false if any campaign ran with the memory backend",
    "complete": "true if every planned repetition is there",
    "checks": "per campaign and variant: steps planned, ok, failed, not_run; sad and packet checks "
    "passed and failed; starved steps; rows with a flagged clock",
    "join": "per variant: `monitor` and `joiner`, each with `by_size`, `slope_ms_per_member`, "
    "`growth_3_to_max`",
    "phases": "per variant and group size: median of each phase at the monitor in ms",
    "leave": "per variant and method: `from_trigger` and `from_detection` at the monitor",
    "dispersal": "per campaign and variant: spread of t_written over the devices by group size",
    "mike": "per variant: join sent to key computed, at the joiner and over all members, by size",
    "sa_write": "per backend: time per SA for `write` and `delete+write`",
    "ratios": "`sa_netlink_to_command`, `sa_netlink_single_to_command`, `join_netlink_to_command` "
    "and what they divide",
    "clock": "largest offset, largest bound, limit, and rows above the limit",
    "kernel_check": "t_written against the kernel's notification: median and extremes in ms",
    "cold_start": "per loading of a fleet: seconds in all, and ms of its parts (network, keys, "
    "daemons from exec to control socket ready)",
    "paper": "the paper's values used for comparison",
    "failures": "the first failed steps with their reasons",
}
"""Top-level keys of summary.json."""
