"""The multicast proxy (RFC 4605): joins what the LANs want, forwards red multicast, and no more."""
