"""The socket's rules against a kernel that misbehaves: strangers, losses, refusals, silence."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from protocol.ipsec.backend import (
    AddSa,
    DeletePolicy,
    DeleteSa,
    IpsecError,
    Outcome,
    PutPolicy,
)
from protocol.ipsec.grouppolicy import GroupPath
from protocol.xfrm import socket as xfrm_socket
from protocol.xfrm.codec import decode, encode
from protocol.xfrm.messages import (
    Ack,
    DelPolicy,
    DelSa,
    Done,
    DumpSas,
    Frame,
    NewSa,
    Overrun,
    UpdPolicy,
)
from protocol.xfrm.netlink import NetlinkBackend
from protocol.xfrm.observer import XfrmObserver
from protocol.xfrm.socket import XfrmOverrunError, XfrmSocket
from tests.support.xfrm import GROUP, OWN, make_sa

Answer = Callable[[list[Frame]], list[Any]]
KERNEL, STRANGER = (0, 0), (4711, 0)


class FakeKernel:
    """A netlink socket whose answers the test decides: (bytes, source) or an OSError."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.sends: list[list[Frame]] = []
        self.queue: list[Any] = []
        self.options: list[tuple[int, int]] = []

    def bind(self, address: tuple[int, int]) -> None:
        pass

    def getsockname(self) -> tuple[int, int]:
        return (99, 0)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        self.options.append((level, option))

    def send(self, data: bytes) -> int:
        frames = decode(data)
        self.sends.append(frames)
        self.queue += self.answer(frames)
        return len(data)

    def recvfrom_into(self, buffer: bytearray, length: int, flags: int) -> Any:
        if not self.queue:
            raise BlockingIOError(errno.EAGAIN, "nothing")
        item = self.queue.pop(0)
        if isinstance(item, OSError):
            raise item
        data, source = item
        buffer[: min(len(data), length)] = data[:length]
        return len(data), source

    def close(self) -> None:
        pass


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], FakeKernel]:
    def make(answer: Answer) -> FakeKernel:
        fake = FakeKernel(answer)
        monkeypatch.setattr(socket, "socket", lambda *_: fake)
        return fake

    return make


def ack(frame: Frame, number: int = 0, text: str = "") -> Any:
    return encode(Ack(number, text), frame.sequence), KERNEL


def test_many_requests_go_in_one_send_and_are_acknowledged_each(kernel: Any) -> None:
    fake = kernel(lambda frames: [ack(frame) for frame in frames])
    operations = [AddSa(make_sa(0x1000 + n)) for n in range(20)]
    assert NetlinkBackend().apply(operations) == [Outcome()] * 20
    assert [len(frames) for frames in fake.sends] == [20]
    assert len({frame.sequence for frame in fake.sends[0]}) == 20
    assert [frame.message for frame in fake.sends[0]] == [NewSa(op.sa) for op in operations]


def test_each_operation_is_its_own_request(kernel: Any) -> None:
    fake = kernel(lambda frames: [ack(frame) for frame in frames])
    sa, path = make_sa(0x1001), GroupPath(OWN, GROUP, if_id=66, reqid=7)
    (policy,) = path.outbound(0x1001)
    NetlinkBackend().apply([AddSa(sa), DeleteSa(sa.id), PutPolicy(policy), DeletePolicy(policy.id)])
    sent = [frame.message for frame in fake.sends[0]]
    assert sent == [NewSa(sa), DelSa(sa.id), UpdPolicy(policy), DelPolicy(policy.id)]


def test_a_long_list_is_cut_into_batches(kernel: Any) -> None:
    fake = kernel(lambda frames: [ack(frame) for frame in frames])
    acks = XfrmSocket().request([DelSa(make_sa(256 + n).id) for n in range(150)])
    assert len(acks) == 150
    assert [len(frames) for frames in fake.sends] == [64, 64, 22]


def test_one_refusal_in_the_middle_is_exactly_that_outcome(kernel: Any) -> None:
    kernel(lambda frames: [ack(f, errno.EEXIST if i == 1 else 0) for i, f in enumerate(frames)])
    outcomes = NetlinkBackend().apply([AddSa(make_sa(0x1000 + n)) for n in range(3)])
    assert [o.errno for o in outcomes] == [0, errno.EEXIST, 0]
    assert outcomes[1].text == "File exists"


def test_what_cannot_be_encoded_is_an_outcome_and_the_rest_is_sent(kernel: Any) -> None:
    fake = kernel(lambda frames: [ack(frame) for frame in frames])
    outcomes = NetlinkBackend().apply([AddSa(make_sa(1)), DeleteSa(make_sa(0x1001).id)])
    assert [o.errno for o in outcomes] == [errno.EINVAL, 0]
    assert len(fake.sends[0]) == 1


def test_acknowledgements_may_come_in_any_order_and_with_strangers(kernel: Any) -> None:
    def answer(frames: list[Frame]) -> list[Any]:
        first, second = frames
        forged = encode(Ack(errno.EPERM), first.sequence), STRANGER
        alien = encode(Ack(errno.EIO), first.sequence + 100), KERNEL
        return [forged, alien, ack(second, errno.ESRCH), ack(first)]

    kernel(answer)
    acks = XfrmSocket().request([DelSa(make_sa(0x1001).id), DelSa(make_sa(0x1002).id)])
    assert [a.errno for a in acks] == [0, errno.ESRCH]


@pytest.mark.parametrize(
    "loss",
    [
        OSError(errno.ENOBUFS, "No buffer space available"),
        (encode(Overrun(), 0), KERNEL),
        (bytes(xfrm_socket.DATAGRAM_LENGTH + 1), KERNEL),
    ],
    ids=["enobufs", "overrun", "too-long"],
)
def test_losses_are_a_state_of_their_own(kernel: Any, loss: Any) -> None:
    kernel(lambda _: [loss])
    with pytest.raises(XfrmOverrunError, match="resync"):
        XfrmSocket().request([DelSa(make_sa(0x1001).id)])


def test_a_silent_kernel_is_no_hang(kernel: Any) -> None:
    kernel(lambda _: [])
    with pytest.raises(XfrmOverrunError, match="did not answer"):
        XfrmSocket().request([DelSa(make_sa(0x1001).id)])


def test_garbage_is_an_error_of_the_backend(kernel: Any) -> None:
    kernel(lambda _: [(b"\xff" * 20, KERNEL)])
    with pytest.raises(IpsecError, match="cannot read"):
        XfrmSocket().request([DelSa(make_sa(0x1001).id)])


def dump_answer(frames: list[Frame], interrupted: bool) -> list[Any]:
    sequence = frames[0].sequence
    flags = 0x02 | (0x10 if interrupted else 0)
    stray = encode(NewSa(make_sa(0x9999)), sequence - 1, 0), KERNEL
    one = encode(NewSa(make_sa(0x1001)), sequence, flags), KERNEL
    return [stray, one, (encode(Done(), sequence, flags), KERNEL)]


def test_an_interrupted_dump_is_read_again(kernel: Any) -> None:
    fake = kernel(lambda frames: dump_answer(frames, interrupted=len(fake.sends) == 1))
    assert NetlinkBackend().dump_sas() == [make_sa(0x1001)]
    assert len(fake.sends) == 2


def test_a_dump_that_never_settles_ends(kernel: Any) -> None:
    fake = kernel(lambda frames: dump_answer(frames, interrupted=True))
    with pytest.raises(IpsecError, match="every dump"):
        XfrmSocket().dump(DumpSas())
    assert len(fake.sends) == xfrm_socket.DUMP_ATTEMPTS


def test_a_refused_dump_says_so(kernel: Any) -> None:
    kernel(lambda frames: [ack(frames[0], errno.EPERM)])
    with pytest.raises(IpsecError, match="Operation not permitted"):
        XfrmSocket().dump(DumpSas())


def test_acquire_is_never_listened_to(kernel: Any) -> None:
    kernel(lambda _: [])
    with pytest.raises(IpsecError, match="larval"):
        XfrmSocket(groups=(1,))


def test_an_observer_tells_of_losses_and_goes_on(kernel: Any) -> None:
    fake = kernel(lambda _: [])
    observer = XfrmObserver()
    fake.queue = [
        (encode(NewSa(make_sa(0x1001)), 0), KERNEL),
        OSError(errno.ENOBUFS, "No buffer space available"),
        (encode(DelSa(make_sa(0x1001).id), 0), KERNEL),
    ]
    events = observer.events()
    assert [event.kind for event in events] == ["sa-added", "lost", "sa-deleted"]
    assert [event.spi for event in events] == [0x1001, None, 0x1001]
    assert events[0].mono_ns <= events[2].mono_ns
    assert observer.events() == []
