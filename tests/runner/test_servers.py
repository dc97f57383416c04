"""A replica whose control plane falls silent calls another one."""

from __future__ import annotations

import pytest
from tests.fakes.control_plane import TOKEN, ControlPlane

from tandemn.client import ReplicaClient
from tandemn.errors import ServerUnavailable
from tandemn.protocol.replicas import LeaseRequest

DEAD = "http://127.0.0.1:9"
DEAD_TOO = "http://localhost:9"
ASK = LeaseRequest(limit=1)


async def test_the_next_call_goes_to_another_one_and_stays_with_what_answers():
    async with (
        ControlPlane([b"{}"]) as plane,
        ReplicaClient(DEAD, "job-1-r0", TOKEN, others=[DEAD_TOO, plane.url]) as client,
    ):
        for _ in range(2):
            with pytest.raises(ServerUnavailable):
                await client.lease(ASK)
        for _ in range(3):
            await client.lease(ASK)
        assert client.url == plane.url
        # What it hears later counts: there may be others by then.
        client.know_servers([plane.url, DEAD])
        client.know_servers([])
        client.url = DEAD
        with pytest.raises(ServerUnavailable):
            await client.lease(ASK)
        assert client.url == plane.url


async def test_where_none_that_it_knows_answers_it_looks_for_others():
    looked = []
    async with ControlPlane([b"{}"]) as plane:

        def look() -> list[str]:
            looked.append(1)
            return [plane.url]

        async with ReplicaClient(DEAD, "job-1-r0", TOKEN, others=[DEAD_TOO], look=look) as client:
            for tries in (1, 2):
                assert len(looked) == 0
                with pytest.raises(ServerUnavailable):
                    await client.lease(ASK)
                assert client.url == (DEAD_TOO, plane.url)[tries - 1]
            await client.lease(ASK)
    assert looked == [1]


async def test_alone_it_calls_the_same_one_again():
    async with ReplicaClient(DEAD, "job-1-r0", TOKEN) as client:
        with pytest.raises(ServerUnavailable):
            await client.lease(ASK)
        assert client.url == DEAD
