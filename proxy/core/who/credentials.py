"""Checks the credentials that an app sends (RFC 7617), and limits how fast anybody can guess passwords.
`addons.admission` calls it for each request that needs credentials.

Rules of this module:

- A wrong name takes as long as a wrong password.
- Guesses are limited for each network. All networks that have guessed wrong recently share a part of the attempts, so
  that some are always left for others.
- No answer allows faster guessing. Credentials that were found right are remembered only for the network that sent
  them, and only while nobody there guesses.
- Credentials are in no message, and are remembered only as a keyed digest.
"""

from __future__ import annotations

import base64
import hmac
from collections import Counter, OrderedDict
from collections.abc import Callable

from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.core.who.addresses import network_of
from proxy.core.who.clients import PasswordHash, User

TRIED_A_SECOND = 5  # in all: each takes some 50 ms, in which nothing else runs; remembered ones take no time
TRIED_OF_SUSPECTS = 3  # for all networks that guessed wrong within `SUSPECT_SECONDS`
GUESSES_OF_ONE = 2  # for one network
_REMEMBERED = 1024
_MAX_CREDENTIALS = 1024


def read_basic(value: str) -> tuple[str, bytes] | None:
    """Read an Authorization or Proxy-Authorization field with the Basic scheme.

    Returns:
        The name and the password; None if the value is anything else.
    """
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "basic" or len(token) > _MAX_CREDENTIALS:
        return None
    try:
        name, colon, password = base64.b64decode(token.strip(" "), validate=True).partition(b":")
        return (name.decode("utf-8"), password) if colon else None
    except ValueError:  # not base64, or not UTF-8
        return None


class _Recent[T]:
    """Remembers the last items that were added, and when."""

    def __init__(self) -> None:
        self._times: OrderedDict[T, float] = OrderedDict()

    def add(self, each: T, now: float = 0.0) -> None:
        """Remember an item; if there are too many, forget the one that was added or used longest ago."""
        self._times[each] = now
        self._times.move_to_end(each)
        if len(self._times) > _REMEMBERED:
            self._times.popitem(last=False)

    def __contains__(self, each: T) -> bool:
        return each in self._times

    def __len__(self) -> int:
        return len(self._times)

    def age(self, each: T, now: float) -> float:
        """Return the time in seconds since an item was added."""
        return now - self._times.get(each, float("-inf"))


type _Pair = tuple[PasswordHash, bytes]


class Verifier:
    """Verifies credentials, and remembers results, since verifying is slow on purpose."""

    def __init__(self, secret: bytes, clock: Callable[[], float]) -> None:
        """Start.

        Args:
            secret: random bytes, for the keyed digests.
            clock: returns seconds, as `time.monotonic` does.
        """
        self._secret = secret
        self._clock = clock
        self._right: _Recent[tuple[str, _Pair]] = _Recent()
        self._wrong: _Recent[_Pair] = _Recent()
        self._suspects: _Recent[str] = _Recent()
        self._second = 0
        self._tried = 0
        self._guesses: Counter[str] = Counter()

    def verify(self, users: tuple[User, ...], value: str, client: str) -> bool:
        """Tell whether a field holds the credentials of one of the users.

        Args:
            users: at least one user.
            value: the field's value; see `read_basic`.
            client: the app's address.

        Raises:
            Denied: TOO_MANY_ATTEMPTS: no more can be checked now.
        """
        credentials = read_basic(value)
        if credentials is None:
            return False
        name, password = credentials
        user = next((user for user in users if hmac.compare_digest(user.name.encode(), name.encode())), None)
        held_against = (user or users[0]).password
        # With the name: a result for one user must say nothing about another user with the same hash.
        pair = (held_against, hmac.digest(self._secret, name.encode() + b":" + password, "sha256"))
        if pair in self._wrong:
            return False
        network = network_of(client)
        self._check_guesses(network)
        self._guesses[network] += 1  # also for remembered credentials: the limit must not tell which are remembered
        if (network, pair) not in self._right:
            self._check_tries(network)
            self._tried += 1
            if not held_against.matches(password):
                self._wrong.add(pair)
                self._suspects.add(network, self._clock())
                return False
        if user is None:
            self._suspects.add(network, self._clock())
            return False
        self._guesses[network] -= 1
        self._right.add((network, pair))
        return True

    def _check_guesses(self, network: str) -> None:
        """Check that a network has not guessed too often in this second.

        Raises:
            Denied: TOO_MANY_ATTEMPTS.
        """
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._tried = 0
            self._guesses.clear()
        if self._guesses[network] >= GUESSES_OF_ONE:
            raise _too_many()

    def _check_tries(self, network: str) -> None:
        """Check that there is time left in this second to try another password.

        Raises:
            Denied: TOO_MANY_ATTEMPTS.
        """
        is_suspect = self._suspects.age(network, self._clock()) < timelimits.SUSPECT_SECONDS
        if self._tried >= (TRIED_OF_SUSPECTS if is_suspect else TRIED_A_SECOND):
            raise _too_many()


def _too_many() -> Denied:
    return Denied(
        Reason.TOO_MANY_ATTEMPTS,
        "too many names and passwords were tried in this second, so these were not looked at",
    )
