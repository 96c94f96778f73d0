"""The daemons idpd and miked: everything in protocol/ that touches sockets, clocks and files.

An engine (``protocol.idp``, ``protocol.mike``) decides; this package performs. It may import
anything in ``protocol`` and nothing of the testbed, which starts the daemons as processes and
speaks to them through the control socket (`protocol.daemon.control`).
"""
