"""What every connection of an app needs from its process. `server.Engine` is the one `House`; `apps.socket` gets it,
and everything on the apps' side uses it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from addons.exchange import Exchange
from addons.sessions import Session, Sessions
from proxy.core.certificates.localca import Mandate
from proxy.core.decisions import Denied
from proxy.core.rules.policy import Policy
from proxy.core.who.credentials import Verifier
from proxy.engine.dispatch import Dispatcher
from proxy.engine.timers import Timers
from proxy.engine.turns import Turns
from proxy.engine.upstreams.asides import Asides
from proxy.engine.upstreams.pool import Pool
from proxy.engine.upstreams.services import Services


class OpenConnection(Protocol):
    """A connection of an app, as far as the engine ends it."""

    @property
    def session(self) -> Session:
        """What the addons know about it."""

    def drain(self) -> None:
        """Close as soon as nothing is under way."""

    def cut_off(self, denied: Denied) -> None:
        """End everything under way, for this reason."""


class House(Protocol):
    """What all connections share."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""

    @property
    def timers(self) -> Timers:
        """The time limits of all connections."""

    @property
    def policy(self) -> Policy:
        """The policy in force."""

    @property
    def local_ca(self) -> Mandate:
        """What the CA may sign whose certificates apps are shown."""

    @property
    def verifier(self) -> Verifier:
        """Checks names and passwords of apps."""

    @property
    def sessions(self) -> Sessions:
        """What the addons know about each connection."""

    @property
    def dispatch(self) -> Dispatcher:
        """Calls the addons' hooks."""

    @property
    def turns(self) -> Turns:
        """Does long work on bodies piece by piece."""

    @property
    def pool(self) -> Pool:
        """The upstream connections that may be used again."""

    @property
    def asides(self) -> Asides:
        """The handshakes that tell of pins in observe mode."""

    @property
    def services(self) -> Services:
        """What `upstreams` needs to open a connection."""

    def began(self, connection: OpenConnection) -> None:
        """Note a connection that was just accepted."""

    def ended(self, connection: OpenConnection) -> None:
        """Note that a connection is over."""

    def admit(self, session: Session) -> None:
        """Count a connection among those whose number is limited.

        Raises:
            Denied: TOO_MANY_CONNECTIONS, CLIENT_FORBIDDEN.
        """

    def may_linger(self) -> bool:
        """Tell whether a client that was just refused may stay connected for a moment, so that it surely reads why."""

    def check_room(self, session: Session) -> None:
        """Check that a connection may have another upstream connection beside its first.

        Raises:
            Denied: TOO_MANY_CONNECTIONS.
        """

    def is_leaving(self, session: Session) -> bool:
        """Tell whether a connection is to be closed as soon as no request is under way on it."""

    def is_last_response(self, session: Session) -> bool:
        """Tell whether a response that begins now is the last one on its connection, where HTTP/1 is spoken."""

    def opened(self, session: Session) -> None:
        """Note that a connection's tunnel is open."""

    def write_denied(self, exchange: Exchange, status: int | None) -> None:
        """Write the decision line of something that was no request, so that no addon has seen it.

        Args:
            exchange: what is known about it.
            status: the status that the app was told, if any.
        """
