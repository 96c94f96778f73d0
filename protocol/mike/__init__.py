"""MIKE, the multicast Internet key exchange, one group key, no server.

Specified in ``docs/mike.md``. The way in is `protocol.mike.engine.MikeEngine`; its own events and
effects are in `protocol.mike.events`.
"""
