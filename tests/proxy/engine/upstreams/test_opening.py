"""When a stream is opened, and when one is begun on a connection that has become open meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.engine.flows import new_server
from proxy.engine.streams import Version
from proxy.engine.upstreams import opening
from proxy.engine.upstreams.pool import Pool

KEY = "key"
STREAM = object()


class Shared:
    """A connection of HTTP/2 in the pool."""

    has_room = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.carrier = SimpleNamespace(key=KEY, opened=loop.time())

    def open(self) -> object:
        return STREAM


@pytest.mark.parametrize(("may_share", "dials"), [(True, 0), (False, 1)])
def test_what_has_become_open_since_the_pool_was_asked_is_shared_unless_it_must_be_new(
    monkeypatch: pytest.MonkeyPatch, may_share: bool, dials: int
) -> None:
    dialled: list[object] = []

    async def dial(*asked: object) -> None:
        dialled.append(asked)
        raise Denied(Reason.UPSTREAM_UNREACHABLE, "as the test says")

    async def run() -> object:
        pool = Pool(asyncio.get_running_loop(), lambda _: None)
        assert pool.take(KEY, Version.EITHER) is None
        pool.share(KEY, cast("Any", Shared(asyncio.get_running_loop())))
        services, record, context = (cast("Any", SimpleNamespace(**each)) for each in ({"pool": pool}, {}, {}))
        server = new_server(("far.example", 443), tls=True)
        return await opening.open_stream(
            services, server, KEY, record, context, version=Version.EITHER, may_share=may_share
        )

    monkeypatch.setattr(opening, "dial", dial)
    if dials:
        with pytest.raises(Denied):
            asyncio.run(run())
    else:
        assert asyncio.run(run()) is STREAM
    assert len(dialled) == dials
