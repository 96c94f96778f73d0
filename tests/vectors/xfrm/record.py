"""Record what iproute2 sends and what a kernel answers, as fixtures for the codec's tests.

Run from the project's folder, as root:

    python tests/vectors/xfrm/record.py requests > tests/vectors/xfrm/requests.json
    python -m testbed.environment --env vm -- \
        .venv/bin/python tests/vectors/xfrm/record.py answers > tests/vectors/xfrm/answers.json

`requests` runs ``ip`` under strace and keeps the bytes it hands to netlink; any kernel will do.
`answers` needs ESP: it makes SAs and policies with ``ip`` in a namespace of its own and keeps the
bytes of dumps, announcements and refusals, with the text of ``ip -d xfrm`` beside them.
The keys are counting bytes, made up for this file. ``expected`` is what our decoder says; a change
there shows in the diff, and the kernel tests compare the same against ``ip`` itself.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from protocol.xfrm.codec import decode, encode
from protocol.xfrm.messages import DelSa, DumpPolicies, DumpSas, NewSa
from protocol.xfrm.namespace import in_namespace
from protocol.xfrm.structs import XfrmLifetimeCfg
from tests.support.xfrm import make_sa, plain

ID = "src 2001:db8:b::1 dst ff0e::1 proto esp"
GCM = "aead rfc4106(gcm(aes)) 0x000102030405060708090a0b0c0d0e0f10111213 128"
CBC = (
    "enc cbc(aes) 0x000102030405060708090a0b0c0d0e0f auth-trunc hmac(sha256) "
    "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 128"
)
TDES = (
    "enc cbc(des3_ede) 0x000102030405060708090a0b0c0d0e0f1011121314151617 auth-trunc hmac(sha1) "
    "0x000102030405060708090a0b0c0d0e0f10111213 96"
)
STATES = [
    f"xfrm state add {ID} spi 0x1001 reqid 7 mode tunnel replay-window 32 if_id 0x42 {GCM}",
    f"xfrm state add {ID} spi 0x1002 reqid 7 mode tunnel {CBC}",
    f"xfrm state add {ID} spi 0x1003 reqid 7 mode transport {TDES}",
    f"xfrm state add {ID} spi 0x1004 reqid 9 mode tunnel replay-window 64 {GCM}",
    f"xfrm state add {ID} spi 0x1005 mode tunnel flag esn replay-window 128 {GCM}",
    f"xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1006 mode tunnel {GCM}",
    f"xfrm state add {ID} spi 0x1007 mode tunnel mark 5 mask 0xff {GCM}",
    f"xfrm state add {ID} spi 0x1008 mode transport {GCM} sel src 2001:db8::/32 dst ff0e::/16",
]
TEMPLATE = "tmpl src 2001:db8:b::1 dst ff0e::1 proto esp"
POLICIES = [
    f"xfrm policy update src ::/0 dst ff00::/8 dir out if_id 0x42 priority 1000 {TEMPLATE} "
    "spi 0x1001 reqid 7 mode tunnel",
    "xfrm policy update src ::/0 dst ff00::/8 dir in if_id 0x42 priority 1000 "
    "tmpl src :: dst ff0e::1 proto esp reqid 7 mode tunnel",
    "xfrm policy update src ::/0 dst ff00::/8 dir fwd if_id 0x42 "
    "tmpl src :: dst ff0e::1 proto esp reqid 7 mode tunnel",
    f"xfrm policy add src 2001:db8::/32 dst ff0e::1/128 proto udp dir out {TEMPLATE} "
    "mode transport",
    "xfrm policy add src ::/0 dst ff05::/16 dir in priority 5 action block",
    "xfrm policy add src 192.0.2.0/24 dst 192.0.2.0/24 dir in action block",
]
OTHERS = [
    f"xfrm state delete {ID} spi 0x1001",
    f"xfrm state get {ID} spi 0x1001",
    "xfrm state flush proto esp",
    "xfrm policy delete src ::/0 dst ff00::/8 dir out if_id 0x42",
    "xfrm policy get src ::/0 dst ff00::/8 dir out if_id 0x42",
    "xfrm policy flush",
]


def entry(what: str, data: bytes, **more: Any) -> dict[str, Any]:
    """One fixture."""
    messages = [plain(frame.message) for frame in decode(data)]
    return {"what": what, **more, "hex": data.hex(), "expected": messages}


def record_requests() -> list[dict[str, Any]]:
    """What ip sends."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        options = ["-e", "trace=sendmsg,sendto", "-e", "write=all", "-o", str(trace)]
        for line in [*STATES, *POLICIES, *OTHERS]:
            subprocess.run(
                ["unshare", "-n", "strace", *options, "ip", *line.split()],
                check=False,
                capture_output=True,
            )
            dump = re.findall(
                r"^ \| [0-9a-f]{5}  ((?:[0-9a-f]{2} {1,2})+)", trace.read_text(), re.M
            )
            found.append(entry(line, bytes.fromhex("".join(dump))))
    return found


def record_answers() -> list[dict[str, Any]]:
    """What the kernel says."""
    namespace = f"xr{os.getpid()}"
    run("ip", "netns", "add", namespace)
    try:
        with in_namespace(f"/run/netns/{namespace}"):
            return list(answers())
    finally:
        run("ip", "netns", "delete", namespace)


def run(*command: str, **options: Any) -> str:
    """Run a command; return its output."""
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def netlink(groups: int = 0) -> socket.socket:
    """A raw XFRM socket with extended acknowledgements."""
    raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 6)
    raw.bind((0, groups))
    raw.setsockopt(270, 11, 1)
    raw.settimeout(10)
    return raw


def answers() -> Any:
    """Yield every fixture of one kernel."""
    kernel = os.uname().release
    listener, asker = netlink(0x2 | 0x4 | 0x8), netlink()
    for line in [*STATES, *POLICIES]:
        run("ip", "-batch", "-", input=line + "\n")
        yield entry(f"announced: {line}", listener.recv(65536), kernel=kernel)
    for what, message, shown in (
        ("dump of SAs", DumpSas(), run("ip", "-d", "xfrm", "state")),
        ("dump of policies", DumpPolicies(), run("ip", "-d", "xfrm", "policy")),
    ):
        asker.send(encode(message, 1))
        while True:
            data = asker.recv(65536)
            yield entry(what, data, kernel=kernel, ip=shown)
            if data[4] == 3:  # NLMSG_DONE
                break
    asker.send(encode(DelSa(make_sa(0x7777).id), 2))
    yield entry("refused: delete of an SA that is not there", asker.recv(65536), kernel=kernel)
    bad = bytearray(encode(NewSa(make_sa(0x7778)), 3))
    bad[16 + 212] = 99  # family
    asker.send(bytes(bad))
    yield entry("refused: with the kernel's words", asker.recv(65536), kernel=kernel)
    asker.setsockopt(270, 10, 1)
    bad[8] = 4
    asker.send(bytes(bad))
    yield entry("refused: with the words, without the request", asker.recv(65536), kernel=kernel)
    for line in (OTHERS[0], OTHERS[3]):
        run("ip", "-batch", "-", input=line + "\n")
        yield entry(f"announced: {line}", listener.recv(65536), kernel=kernel)
    lifetime = XfrmLifetimeCfg(hard_add_expires_seconds=1)
    asker.send(encode(NewSa(make_sa(0x7779), lifetime), 5))
    yield entry("accepted", asker.recv(65536), kernel=kernel)
    yield entry("announced: an SA with a lifetime", listener.recv(65536), kernel=kernel)
    yield entry("announced: it expired", listener.recv(65536), kernel=kernel)
    for line in (OTHERS[2], OTHERS[5]):
        run("ip", "-batch", "-", input=line + "\n")
        yield entry(f"announced: {line}", listener.recv(65536), kernel=kernel)


if __name__ == "__main__":
    recorders = {"requests": record_requests, "answers": record_answers}
    json.dump(recorders[sys.argv[1]](), sys.stdout, indent=1)
    print()
