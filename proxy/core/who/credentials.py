"""What an app shows to be let in (RFC 7617), compared slowly, and not too often.

Rules of this module:

- A wrong name takes as long as a wrong password.
- Guesses are limited for each network that they come from. Who has guessed wrong of late shares a part of all that may
  be tried, so that some is always left for who has not.
- No answer helps to guess faster than that: what is known to be right counts only where it was shown before, and there
  only while nobody guesses.
- What an app sends as its credentials is in no message, and is remembered only as a keyed digest.
"""

from __future__ import annotations

import base64
import hmac
from collections import Counter, OrderedDict
from collections.abc import Callable

from proxy.core.decisions import Denied, Reason
from proxy.core.who.addresses import network_of
from proxy.core.who.clients import PasswordHash, User

TRIED_A_SECOND = 5  # of all, since each takes some 50 ms in which nothing else moves; what is known takes none
TRIED_OF_SUSPECTS = 3  # … of all together that have guessed wrong in the last SUSPECT_SECONDS
GUESSES_OF_ONE = 2  # … of one network
SUSPECT_SECONDS = 60.0
_REMEMBERED = 1024
_MAX_CREDENTIALS = 1024


def read_basic(value: str) -> tuple[str, bytes] | None:
    """Read the value of an Authorization or Proxy-Authorization field with the Basic scheme.

    Returns:
        The name and the password, or None if it is anything else.
    """
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "basic" or len(token) > _MAX_CREDENTIALS:
        return None
    try:
        name, colon, password = base64.b64decode(token.strip(" "), validate=True).partition(b":")
        return (name.decode("utf-8"), password) if colon else None
    except ValueError:  # no base64, or no UTF-8
        return None


class _Recent[T]:
    """Remembers the last things that it was told, and when."""

    def __init__(self) -> None:
        self._times: OrderedDict[T, float] = OrderedDict()

    def add(self, each: T, now: float = 0.0) -> None:
        """Remember one; the one that was added or used longest ago is forgotten for it."""
        self._times[each] = now
        self._times.move_to_end(each)
        if len(self._times) > _REMEMBERED:
            self._times.popitem(last=False)

    def __contains__(self, each: T) -> bool:
        return each in self._times

    def __len__(self) -> int:
        return len(self._times)

    def age(self, each: T, now: float) -> float:
        """Return how long ago one was added."""
        return now - self._times.get(each, float("-inf"))


type _Pair = tuple[PasswordHash, bytes]


class Verifier:
    """Verifies credentials, and remembers what it found, since finding out takes long on purpose."""

    def __init__(self, secret: bytes, clock: Callable[[], float]) -> None:
        """Start.

        Args:
            secret: random bytes, for the digests that are kept.
            clock: seconds, as `time.monotonic` counts them.
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
        """Tell whether a field's value are the credentials of one of the users.

        Args:
            users: at least one.
            value: as `read_basic` reads it.
            client: the app's address.

        Raises:
            Denied: TOO_MANY_ATTEMPTS: it cannot be told now.
        """
        credentials = read_basic(value)
        if credentials is None:
            return False
        name, password = credentials
        user = next((user for user in users if hmac.compare_digest(user.name.encode(), name.encode())), None)
        held_against = (user or users[0]).password
        # The name as well: what is known of one must tell nothing of another that is held against the same.
        pair = (held_against, hmac.digest(self._secret, name.encode() + b":" + password, "sha256"))
        if pair in self._wrong:
            return False
        network = network_of(client)
        self._check_guesses(network)
        self._guesses[network] += 1  # also if it is not looked at: so nothing is learned from what is
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
        is_suspect = self._suspects.age(network, self._clock()) < SUSPECT_SECONDS
        if self._tried >= (TRIED_OF_SUSPECTS if is_suspect else TRIED_A_SECOND):
            raise _too_many()


def _too_many() -> Denied:
    return Denied(
        Reason.TOO_MANY_ATTEMPTS,
        "too many names and passwords were tried in this second, so these were not looked at",
    )
