"""Finds and removes SAs and policies that carry our marks: the orphans of a killed daemon.

Ours are those with our reqid and our xfrm interface id. Nothing else is touched.
"""

from __future__ import annotations

from protocol.idp.config import IdpConfig
from protocol.ipsec.backend import DeletePolicy, DeleteSa, IpsecBackend, IpsecError, Operation


def remove_own(backend: IpsecBackend, config: IdpConfig) -> int:
    """Remove every SA and policy with our marks; return how many there were.

    Raises:
        IpsecError: the backend refused to remove one.
    """
    operations: list[Operation] = [
        DeletePolicy(policy.id)
        for policy in backend.dump_policies()
        if (policy.reqid, policy.if_id) == (config.reqid, config.if_id)
    ]
    operations += [
        DeleteSa(sa.id)
        for sa in backend.dump_sas()
        if (sa.reqid, sa.if_id) == (config.reqid, config.if_id)
    ]
    if not operations:
        return 0
    failed = [outcome.text for outcome in backend.apply(operations) if not outcome.ok]
    if failed:
        raise IpsecError(f"cannot remove {len(failed)} old SAs or policies: {failed[0]}")
    return len(operations)
