"""Finds and removes what carries our marks: the SAs, policies and routes of a killed daemon.

Ours are SAs and policies with one of our reqids and our xfrm interface id, and routes with our
protocol number through our interface. Nothing else is touched.
"""

from __future__ import annotations

from protocol.core.errors import LocalError
from protocol.daemon.routes import Routes
from protocol.idp.config import IdpConfig
from protocol.idp.events import KernelRead, RemoveRoute
from protocol.ipsec.backend import DeletePolicy, DeleteSa, IpsecBackend, IpsecError, Operation


def remove_own(backend: IpsecBackend, config: IdpConfig) -> int:
    """Remove every SA and policy with our marks; return how many there were.

    Raises:
        IpsecError: the backend refused to remove one.
    """
    reqids = (config.reqid, config.unicast_reqid)
    operations: list[Operation] = [
        DeletePolicy(policy.id)
        for policy in backend.dump_policies()
        if policy.reqid in reqids and policy.if_id == config.if_id
    ]
    operations += [
        DeleteSa(sa.id)
        for sa in backend.dump_sas()
        if sa.reqid in reqids and sa.if_id == config.if_id
    ]
    if not operations:
        return 0
    failed = [outcome.text for outcome in backend.apply(operations) if not outcome.ok]
    if failed:
        raise IpsecError(f"cannot remove {len(failed)} old SAs or policies: {failed[0]}")
    return len(operations)


def read_own(backend: IpsecBackend, routes: Routes, config: IdpConfig) -> KernelRead:
    """Return what carries our marks; what cannot be read is a problem, not an error."""
    reqids = (config.reqid, config.unicast_reqid)
    try:
        sas, policies = backend.dump_sas(), backend.dump_policies()
        destinations = routes.dump()
    except LocalError as error:
        return KernelRead(problem=str(error))
    return KernelRead(
        frozenset(sa.id for sa in sas if sa.reqid in reqids and sa.if_id == config.if_id),
        tuple(one for one in policies if one.reqid in reqids and one.if_id == config.if_id),
        frozenset(destinations),
    )


def remove_own_routes(routes: Routes) -> int:
    """Remove every route of ours; return how many there were.

    Raises:
        LocalError: the kernel refused to remove one, or does not answer.
    """
    left = [RemoveRoute(prefix) for prefix in routes.dump()]
    if left:
        failed = [outcome.text for outcome in routes.apply(left) if not outcome.ok]
        if failed:
            raise LocalError(f"cannot remove {len(failed)} old routes: {failed[0]}")
    return len(left)
