"""The kernel's announcements, as an observer outside the writer sees them."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest

from protocol.ipsec.backend import AddSa, DeletePolicy, DeleteSa
from protocol.ipsec.grouppolicy import GroupPath
from protocol.xfrm.backends import make_backend
from protocol.xfrm.messages import ExpireSa, NewSa
from protocol.xfrm.observer import XfrmEvent, XfrmObserver
from protocol.xfrm.socket import XfrmSocket
from protocol.xfrm.structs import XfrmLifetimeCfg
from tests.support.netns import Namespace, namespace, require_esp
from tests.support.xfrm import GROUP, OWN, make_sa

pytestmark = pytest.mark.kernel
DEADLINE_S = 20


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    require_esp()
    with namespace() as made:
        yield made


def wait_for(observer: XfrmObserver, kind: str) -> XfrmEvent:
    """Return the first event of a kind, or fail with what came instead."""
    seen: list[XfrmEvent] = []
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        select.select([observer], [], [], deadline - time.monotonic())
        for event in observer.events():
            seen.append(event)
            if event.kind == kind:
                return event
    pytest.fail(f"no {kind} within {DEADLINE_S} s, but {[event.kind for event in seen]}")


def test_every_write_is_announced_with_a_time_between_before_and_after(space: Namespace) -> None:
    backend = make_backend("netlink", space.path)
    path = GroupPath(OWN, GROUP, if_id=66, reqid=7)
    sa = make_sa(0x1001)
    with XfrmObserver(space.path) as observer:
        before = time.monotonic_ns()
        backend.apply([AddSa(sa), *path.switch(0), DeletePolicy(path.outbound()[0].id)])
        backend.apply([DeleteSa(sa.id)])
        # The kernel announces before it acknowledges: everything is there now, without waiting.
        events = observer.events()
        after = time.monotonic_ns()
    backend.close()
    assert [event.kind for event in events] == [
        "sa-added",
        "policy-updated",
        "policy-deleted",
        "sa-deleted",
    ]
    assert [event.spi for event in events] == [0x1001, None, None, 0x1001]
    assert isinstance(events[0].message, NewSa)
    assert events[0].message.sa == sa
    assert all(before <= event.mono_ns <= after for event in events)
    assert len({event.port for event in events}) == 1
    assert sa.key.digest in repr(events)
    assert repr(sa.key.encryption)[2:-1] not in repr(events)


def test_a_refused_write_is_not_announced(space: Namespace) -> None:
    backend = make_backend("netlink", space.path)
    sa = make_sa(0x1001)
    with XfrmObserver(space.path) as observer:
        backend.apply([AddSa(sa), AddSa(sa), DeleteSa(sa.id), DeleteSa(sa.id)])
        assert [event.kind for event in observer.events()] == ["sa-added", "sa-deleted"]
    backend.close()


def test_an_expired_sa_is_announced_and_gone(space: Namespace) -> None:
    socket = XfrmSocket(space.path)
    backend = make_backend("netlink", space.path)
    with XfrmObserver(space.path) as observer:
        lifetime = XfrmLifetimeCfg(hard_add_expires_seconds=1)
        (ack,) = socket.request([NewSa(make_sa(0x1001), lifetime)])
        assert ack.errno == 0
        event = wait_for(observer, "sa-expired")
    assert event.message == ExpireSa(make_sa(0x1001).id, hard=True)
    assert backend.dump_sas() == []
    socket.close()
    backend.close()


def test_a_flush_by_somebody_else_is_seen(space: Namespace) -> None:
    backend = make_backend("netlink", space.path)
    backend.apply([AddSa(make_sa(0x1001))])
    with XfrmObserver(space.path) as observer:
        space.ip("xfrm state flush")
        assert [event.kind for event in observer.events()] == ["sas-flushed"]
    backend.close()


def test_every_announcement_of_a_large_change_arrives(space: Namespace) -> None:
    backend = make_backend("netlink", space.path)
    sas = [make_sa(0x1000 + n) for n in range(500)]
    with XfrmObserver(space.path) as observer:
        backend.apply([AddSa(sa) for sa in sas])
        assert [event.spi for event in observer.events()] == [sa.spi for sa in sas]
        backend.apply([DeleteSa(sa.id) for sa in sas])
        assert len(observer.events()) == len(sas)
    backend.close()
