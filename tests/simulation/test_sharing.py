"""Decoding once for many receivers: nobody changes what others got, and it ends with the run."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import pytest

from protocol.identity import envelope
from protocol.idp import lighthello
from protocol.idp.lighthello import LightHello
from protocol.idp.messages import Hello
from protocol.mike.messages import DECODERS
from testbed.sim.run import run
from testbed.sim.scenario import Theme, draw
from testbed.sim.sharing import shared_work

Read = list[tuple[bytes, Any, Callable[[bytes], Any]]]


def noting(read: Read, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def note(data: bytes) -> Any:
        message = decode(data)
        read.append((data, message, decode))
        return message

    return note


def test_a_message_that_many_got_is_as_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: Read = []
    for kind, decode in list(DECODERS.items()):
        monkeypatch.setitem(DECODERS, kind, noting(read, decode))
    monkeypatch.setattr(envelope, "decode", noting(read, envelope.decode))
    for message in (Hello, LightHello):
        monkeypatch.setattr(message, "decode", staticmethod(noting(read, message.decode)))
    verdict = run(draw(2, members=4, theme=Theme.DEATH))
    assert verdict.violation is None
    assert {type(message).__name__ for _, message, _ in read} >= {"Hello", "LightHello", "Tree"}
    assert len({data for data, _, _ in read}) < verdict.datagrams
    for data, message, decode in read:
        assert decode(data) == message


def test_functions_remember_only_meanwhile() -> None:
    def present() -> list[Any]:
        decoders = [dict(DECODERS), envelope.decode, LightHello.decode, Hello.decode]
        return [*decoders, lighthello.leads_to, hmac.digest]

    before = present()
    with shared_work():
        assert not any(one == other for one, other in zip(before, present(), strict=True))
    assert present() == before
