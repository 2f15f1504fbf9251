"""What every connection of an app needs of the process that it is in.

`server.Engine` is the one `House`; `apps.socket` is given it, and all that speaks with an app uses what it offers.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from addons.exchange import Exchange
from addons.sessions import Session, Sessions
from proxy.core.certificates.localca import Lifetime
from proxy.core.decisions import Denied
from proxy.core.rules.policy import Policy
from proxy.core.who.credentials import Verifier
from proxy.engine.dispatch import Dispatcher
from proxy.engine.upstreams.pool import Pool
from proxy.engine.upstreams.services import Services


class OpenConnection(Protocol):
    """A connection of an app, as far as the house ends it."""

    @property
    def session(self) -> Session:
        """What the addons know of it."""

    def drain(self) -> None:
        """Close as soon as nothing is under way."""

    def cut_off(self, denied: Denied) -> None:
        """End what is under way, for this reason."""


class House(Protocol):
    """What is there for all connections."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""

    @property
    def policy(self) -> Policy:
        """The policy that is in force."""

    @property
    def local_ca(self) -> Lifetime:
        """How long the CA is valid that signs what apps see."""

    @property
    def verifier(self) -> Verifier:
        """Checks the names and passwords that apps show."""

    @property
    def sessions(self) -> Sessions:
        """What the addons know of each connection."""

    @property
    def dispatch(self) -> Dispatcher:
        """Calls the addons."""

    @property
    def pool(self) -> Pool:
        """The upstream connections that may serve again."""

    @property
    def services(self) -> Services:
        """What `upstreams` needs to open one."""

    def began(self, connection: OpenConnection) -> None:
        """Take note of a connection that was just accepted."""

    def ended(self, connection: OpenConnection) -> None:
        """Take note that one is over."""

    def admit(self, session: Session) -> None:
        """Count a connection among those that there may be only so many of.

        Raises:
            Denied: TOO_MANY_CONNECTIONS, CLIENT_FORBIDDEN.
        """

    def check_room(self, session: Session) -> None:
        """Check that a connection may have another upstream connection beside its first.

        Raises:
            Denied: TOO_MANY_CONNECTIONS.
        """

    def is_leaving(self, session: Session) -> bool:
        """Whether a connection is to be closed as soon as no request is under way on it."""

    def note_refused(self, exchange: Exchange, status: int | None) -> None:
        """Write the line of what was no request, and so came to no addon.

        Args:
            exchange: what there is to say of it.
            status: the status that the app was told, if it was told one.
        """
