"""An attacker on the black network: what it knows, what it forges, and how it sends.

It runs as a process in a network namespace of its own on the black switch and speaks raw Ethernet,
so that any source address can be forged. `testbed.attacker.port` plugs it in and starts it;
`experiments.attacks` says when it does what, and looks at what came of it.
"""
