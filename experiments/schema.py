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
    "idp_startup_ms": "joiner's JOIN handed to the local socket minus its trigger (join only)",
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
    "when": "`before` or `after` the repetition; `wan`: over the WAN's links with their delay and "
    "loss, a measure of these and not of the clocks",
    "offset_ns": "device's clock minus the reference clock (RFC 5905 on-wire exchange)",
    "delay_ns": "round-trip delay of the exchange that was kept (the shortest)",
    "bound_ns": "error bound of the offset: half that delay",
}

FIRST_PACKETS: dict[str, str] = {
    "run": "run id",
    "campaign": "`join`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "step": "number of the step, from 1",
    "group_size": "members after the step",
    "subject": "the device that joins",
    "direction": "`to-joiner`: from the monitor's LAN to the joiner's; `from-joiner`: from the "
    "joiner's LAN to that of another member",
    "sender_device": "device behind which the sending client is",
    "device": "device behind which the receiving client is",
    "sender": "client that sends",
    "receiver": "client that listens",
    "interval_ms": "time between two packets of the stream",
    "first_ms": "arrival of the first red multicast packet at the receiver (the kernel's stamp) "
    "minus the trigger of the join",
    "sent_ms": "when that packet was sent, minus the trigger",
    "ok": "1 if it arrived, not before the trigger, and the step is ok",
    "reason": "why it does not count",
}

THROUGHPUT: dict[str, str] = {
    "run": "run id",
    "campaign": "`throughput`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "step": "number of the level, from 1: a size and a rate",
    "protection": "`ipsec`, or `clear-text`: the same way without IPsec",
    "size_bytes": "UDP payload of the packets",
    "rate_pps": "packets per second asked for",
    "sent_pps": "packets per second that the sender reached",
    "sent": "packets sent",
    "refused": "packets that the sender's kernel refused",
    "sender": "client that sends",
    "device": "device behind which the receiving client is",
    "receiver": "client that listens",
    "received": "different packets that arrived",
    "lost_percent": "share of the packets sent that did not arrive",
    "duplicated": "further copies",
    "reordered": "packets overtaken by another",
    "overflow": "packets that had come and found the receiver's buffer full: not lost on the way",
    "delay_min_ms": "least time from sending to arrival (the kernel's stamp)",
    "delay_max_ms": "largest",
    "idle_percent": "CPU idle over all cores while the stream was sent",
    "ok": "1 if it was measured, whatever was lost",
    "reason": "why not",
}

REKEY_LOSS: dict[str, str] = {
    "run": "run id",
    "campaign": "`rekey-loss`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "step": "number of the event, from 1: `steady` comes first",
    "method": "`start`, `shutdown`, or `steady`: nobody comes or goes, the rate is looked for",
    "subject": "device that comes or goes",
    "sa_mode": "`per-sender` or `paper`",
    "rate_pps": "packets per second of each sender",
    "sender": "device that sends",
    "device": "device that receives",
    "sent": "packets from the last one before the event to the last one that arrived",
    "received": "different packets of these that arrived",
    "lost": "the others",
    "duplicated": "further copies",
    "reordered": "packets overtaken by another",
    "overflow": "packets that had come and found the receiver's buffer full",
    "gap_max_ms": "longest time without an arrival across a gap",
    "delay_max_ms": "longest time from sending to arrival (the kernel's stamp)",
    "idle_percent": "CPU idle over all cores meanwhile",
}

HELLOS: dict[str, str] = {
    "run": "run id",
    "campaign": "`discovery`, `hello-cost`, `hello-interval`, `flapping`, `idp-leave` or `faults`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "step": "number of the step, from 1",
    "method": "`start`, `shutdown`, `cut`, `restore` (the cable is back) or `flap`",
    "group_size": "devices that run",
    "hello_interval_ms": "configured hello interval",
    "subject": "the device that the step is about",
    "device": "device that the number is of; empty: of the step",
    "measure": "`rtt_ms` (round trip of a clock exchange with the first device), `detected_ms` "
    "(the newcomer known here, from its trigger), `answered_ms` (this device known to it, "
    "from its trigger); `cpu_percent` (of one processor, idpd's), "
    "`light_per_s`, `signed_per_s` (hellos heard); `bytes_per_s` (sent to the black link), "
    "`detection_ms` (LEAVE or RESTORE noticed here, from the trigger), `written_ms` (SAs of the "
    "newest epoch written, from the trigger), `period_intervals`, `flaps`, `rekeys`; of a fault: "
    "`fault_ms` (its length), `recovered_ms` (from its end until all is well), `new_key_ms` (from "
    "the TM's death until all others have another TM's key), `clock_step_s`, `disk_refusals` "
    "(writes refused), `kernel_overruns`, `link_overruns` (netlink buffers that overflowed)",
    "value": "the number",
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

DELIVERIES: dict[str, str] = {
    "run": "run id",
    "campaign": "`delivery`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "phase": "`first` (packets until everybody has had one), `matrix` (counted streams), `joined`, "
    "`left`, `rejoined`, `member-left`, `member-back` (as in listeners.csv)",
    "family": "4 or 6: IPv4 or IPv6 inside the tunnel",
    "epoch": "epoch of the group while it was sent",
    "sender": "client or device that sent the stream",
    "sender_lan": "device whose red LAN the sender belongs to",
    "sender_kind": "`client`, or `device` for a device's own multicast into the tunnel",
    "receiver": "client or device",
    "receiver_lan": "device whose red LAN the receiver belongs to",
    "receiver_kind": "`client` or `device`",
    "must_arrive": "1 if the receiver must get it; 0: it must get nothing; a device and its own "
    "LAN have no row: between them is no IPsec",
    "sent": "packets that the sender's kernel took",
    "received": "different packets that arrived",
    "duplicates": "packets that arrived beyond these",
    "first_number": "number of the first packet that arrived, from 1",
    "first_arrival_ms": "first arrival minus first sending of the stream (kernel's receive stamp)",
    "median_ms": "median over the packets, arrival minus sending",
    "delivered": "1 if all packets arrived (phase `first`: any); empty if none should",
}

LISTENERS: dict[str, str] = {
    "run": "run id",
    "campaign": "`delivery`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "stage": "`joined`; `left`: all clients of the LAN left the group; `rejoined`; `member-left`: "
    "the LAN's device left the secure group, its clients still listen; `member-back`",
    "lan": "device whose red LAN it is about",
    "family": "4 or 6",
    "epoch": "epoch of the group while it was sent",
    "sender": "client of another LAN that sent the stream",
    "sent": "packets that its kernel took",
    "frames": "frames of the stream on the LAN's wire, read from a packet socket",
    "expected_frames": "what that must be: all or none",
    "received_min": "packets that arrived at the LAN's client that got fewest",
    "received_max": "the same for most",
    "others_received_min": "packets that arrived at the other place that got fewest",
    "change_ms": "from the change until the proxies (stages of a member: the group) knew",
    "ok": "1 if the wire, the LAN's clients and all others have what they must have",
}

CONVERGENCE: dict[str, str] = {
    "run": "run id",
    "campaign": "`delivery`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "stage": "`loaded` (network up, daemons parked, routers converged), `group` (one epoch, "
    "written and active everywhere), `black-group` (MLD and PIM know it), `listeners` (all proxies "
    "know theirs), `first-packet-ipv6` and `-ipv4` (a packet of every place has reached all "
    "others); `routing-daemons`, `-adjacencies`, `-routes`, `-pim`: what the black routers say",
    "since": "what the time counts from: `up` (building the network began) or `routers started`",
    "seconds": "when it was seen",
}

COUNTERS: dict[str, str] = {
    "run": "run id",
    "campaign": "`delivery`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "node": "device or LAN router",
    "source": "`guard` (packets dropped, docs/guard.md) or `mproxy` (the multicast proxy's own)",
    "counter": "its name",
    "value": "at the end of the repetition",
}

LEAKS: dict[str, str] = {
    "run": "run id",
    "campaign": "`delivery` or `faults`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "link": "black link, captured from before the daemons to after them",
    "traffic": "kind of traffic, or `leak` for what belongs to none (docs/TESTING.md)",
    "frames": "how many frames of it",
    "not_captured": "frames that the capture of this link lacks",
}

WITNESS: dict[str, str] = {
    "run": "run id",
    "campaign": "`delivery`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "link": "the device's own black link, which all that it sends crosses once",
    "device": "whose ESP packets",
    "epoch": "epoch of the SA; empty: one that was replaced before the group was complete",
    "packets": "different ESP packets with this source and SPI (tshark)",
    "decrypted": "those of them that tshark decrypts with a good integrity check value",
    "red": "those of the decrypted whose inner source is in the device's LAN and whose inner "
    "destination is a group of the streams",
    "sent": "packets of the streams that kernels of the LAN took in that epoch (our count)",
    "sent_early": "the same before the LAN had multicast routes: some may never reach the device",
    "other": "decrypted minus red: the check packets and the tunnel interface's own MLD and ND",
    "equal": "1 if packets = decrypted and sent <= red <= sent + sent_early",
}

UNICAST: dict[str, str] = {
    "run": "run id",
    "campaign": "`join`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "step": "number of the step, from 1",
    "group_size": "members after the step",
    "device": "whose SAs, policies and routes",
    "role": "`joiner`, `monitor` or `member`",
    "multicast_ms": "multicast SAs of the new epoch written minus trigger",
    "sas_ms": "the first batch after which there are SAs of the new epoch and with every other "
    "member minus trigger; empty if the last pair's came in a batch without (mode `psk`)",
    "complete_ms": "SAs and policies for every pair and all routes written minus trigger",
    "multicast_batch_ms": "of it, the batch that wrote the multicast SAs",
    "pair_batch_ms": "of it, the batches that wrote pairs' SAs and policies, added up",
    "route_batch_ms": "of it, the batches that wrote routes, added up",
    "pair_batches": "how many batches of pairs' SAs and policies those were",
    "pair_operations": "SAs, policies and routes written or removed in them",
    "ok": "1 if the step is ok and everything was written",
}

ATTACKS: dict[str, str] = {
    "run": "run id",
    "campaign": "`attacks`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "step": "number of the step, from 1",
    "attack": "its name",
    "who": "whose certificate the attacker has: `outsider` (none), `foreign` (of a CA that nobody "
    "trusts), `ex-member` (revoked), `member` (copied)",
    "flood": "1 if it is sent as fast as the machine and the cable carry",
    "achieved": "what it achieved, `nothing`, or `not run: no kernel SAs`",
    "sent": "frames sent while nothing else happened",
    "rate_pps": "frames per second that the attacker reached",
    "mbit_per_s": "the same in Mbit/s",
    "answered": "frames that all devices sent meanwhile, their hellos and streams among them",
    "tried": "captured packets and notices on which an ex-member's keys were tried",
    "idpd_cpu_percent": "of one processor, at the member that paid most",
    "miked_cpu_percent": "the same of miked",
    "idpd_us_per_frame": "processor time of that idpd per frame of the attack, its usual work "
    "included",
    "miked_us_per_frame": "the same of miked",
    "refused": "datagrams that the members' daemons refused and counted",
    "buffer_full": "datagrams that found a socket's buffer full, the strangers' too; all members",
    "guard_dropped": "packets that the members' guards dropped",
    "esp_refused": "ESP packets that the members' kernels refused",
    "growth_kib": "by how much the daemon grew that grew most",
    "joined_pps": "frames per second while devices joined, to the TM and the joiner together",
    "join_ratio": "median join under the attack / median join without, of all until then; a join "
    "lasts until the last device has the new SAs",
    "busy_ratio": "the same, or the median join beside as many frames to nobody if that is longer, "
    "in the place of the quiet one: this is judged",
    "red_sent": "red packets of the members' streams during the attack and the joins",
    "red_lost": "of them, those that did not arrive",
    "red_twice": "of them, those that were delivered twice",
}

ATTACK_JOINS: dict[str, str] = {
    "run": "run id",
    "campaign": "`attacks`",
    "variant": "name of the variant",
    "repetition": "number of the repetition, from 1",
    "step": "number of the attack's step",
    "attack": "its name",
    "condition": "`quiet`, `attack`, or `busy`: as many frames cross the same cables to a group "
    "that nobody is in",
    "rate_pps": "frames per second that the attacker reached meanwhile",
    "joiner_ms": "SAs written at the joining device, from the trigger",
    "monitor_ms": "the same at the first device",
    "last_ms": "the same at the last device",
}

FILES: dict[str, dict[str, str]] = {
    "events.csv": EVENTS,
    "latencies.csv": LATENCIES,
    "steps.csv": STEPS,
    "clocks.csv": CLOCKS,
    "first_packets.csv": FIRST_PACKETS,
    "unicast.csv": UNICAST,
    "throughput.csv": THROUGHPUT,
    "rekey_loss.csv": REKEY_LOSS,
    "hellos.csv": HELLOS,
    "attacks.csv": ATTACKS,
    "attack_joins.csv": ATTACK_JOINS,
    "sa_writes.csv": SA_WRITES,
    "deliveries.csv": DELIVERIES,
    "listeners.csv": LISTENERS,
    "convergence.csv": CONVERGENCE,
    "counters.csv": COUNTERS,
    "leaks.csv": LEAKS,
    "witness.csv": WITNESS,
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
    "mike": "per variant, by size: join sent to key computed at the joiner (Fig. 7) and at the "
    "slowest member, and how long after the first the last member has its key",
    "sa_write": "per backend: time per SA for `write` and `delete+write`",
    "wan": "joins over a WAN: per variant delay and loss asked for, measured one-way delay, join "
    "at monitor, joiner and last device, dispersal, the budget of three one-way delays and whether "
    "it was kept; apart from them the routers' convergence per loading",
    "first_packets": "per variant and direction: first red multicast packet at a client, from the "
    "trigger",
    "unicast": "per variant, at the joiner and at the last device, by group size: multicast SAs "
    "written, all of unicast written, their ratio; the batches alone",
    "throughput": "per variant and size: the highest rate with at most 1 % lost, loss per rate; "
    "ratios of IPsec to clear text",
    "rekey_loss": "per variant: rate, senders, and per method the events, packets sent, lost, "
    "duplicated and reordered, the most lost by one event, the longest gap",
    "idp": "per campaign about hellos, variant, method and group size (flapping: period; "
    "hello-interval: interval): median, least, largest and number of each measure",
    "attacks": "per attack whether it is `ok`, what it `achieved` (a list; null: not run), rates, "
    "join latency per condition, ratio, costs; in all `tried`, `successes`, `violations`, the "
    "largest ratio and growth with their limits, `ok`",
    "ratios": "`sa_netlink_to_command`, `sa_netlink_single_to_command`, `join_netlink_to_command` "
    "and what they divide",
    "clock": "largest offset, largest bound, limit, and rows above the limit",
    "kernel_check": "t_written against the kernel's notification: median and extremes in ms",
    "cold_start": "per loading of a fleet: seconds in all, and ms of its parts (network, keys, "
    "daemons from exec to control socket ready)",
    "delivery": "per variant: `matrix` (records of sender, place of arrival, family: streams "
    "delivered, packets sent and received), `all_delivered`, `listeners`, `leaks`, `witness` "
    "(tshark's counts beside ours), `convergence` (s), `guard_drops`",
    "paper": "the paper's values used for comparison",
    "failures": "the first failed steps with their reasons",
}
"""Top-level keys of summary.json."""
