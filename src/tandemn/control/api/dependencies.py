"""What handlers ask for: the services, and who is calling."""

from __future__ import annotations

import hmac
from typing import Annotated, cast

from fastapi import Depends, Header, Request

from tandemn.control.services import Services
from tandemn.control.store import replicas
from tandemn.control.store.records import ReplicaRecord
from tandemn.control.tokens import token_hash
from tandemn.errors import NotAllowed, NotFound


def services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


ServicesNow = Annotated[Services, Depends(services)]


async def calling_replica(
    replica_id: str, services: ServicesNow, authorization: Annotated[str, Header()] = ""
) -> ReplicaRecord:
    """Find the replica that calls by its own token.

    Raises:
        NotAllowed: not its token.
        NotFound: it has ended (code `replica_ended`): whoever calls should end, too.
    """
    wrong = NotAllowed("this is not the replica's token", code="invalid_token", object_id=replica_id)
    token = authorization.removeprefix("Bearer ")
    try:
        replica = await services.database.run(replicas.get, replica_id)
    except NotFound as exc:
        raise wrong from exc
    if not hmac.compare_digest(token_hash(token), replica.token_hash or ""):
        raise wrong
    if replica.state.has_ended:
        raise NotFound(
            f"replica {replica_id} has ended: {replica.reason}", code="replica_ended", object_id=replica_id
        )
    return replica


CallingReplica = Annotated[ReplicaRecord, Depends(calling_replica)]
