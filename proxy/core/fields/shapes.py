"""Says where a JSON text has values that look like secrets: card numbers, tokens, passwords, national ids. In observe
mode `addons.observing` calls it for request bodies, so that `overcoat suggest` knows what might be encrypted.

Rules of this module:

- What it returns holds nothing of a value: only the path of the member, and the kind of secret that it looks like.
- A member's name may itself be a secret (an object keyed by tokens). So only names that look as if somebody had thought
  of them are told; any other becomes `*`, which a selector may say, too. See `told_name`.
- It is a guess, and costs little: only the beginning of a text is read, once, from left to right, and only so many
  values of it. What is no JSON ends it; what was found until then counts.
- Kinds that have check digits are checked: a number that only is as long as a card's is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import StrEnum

MOST_BYTES = 64 * 1024  # of a text that are looked at
MOST_VALUES = 500  # of them: a few milliseconds
MOST_PATHS = 16  # that are told
MOST_PATH = 128  # characters of one that is told
MOST_DEPTH = 32
_MOST_VALUE = 4096  # bytes: what is longer is a document or a picture

type _Step = bytes | None  # the name of a member, or None for an element of an array


class Shape(StrEnum):
    """What a value looks like."""

    CARD_NUMBER = "card_number"
    CARD_CODE = "card_code"
    TOKEN = "token"  # noqa: S105  # it names a kind
    PASSWORD = "password"  # noqa: S105  # it names a kind
    NATIONAL_ID = "national_id"
    IBAN = "iban"


def shapes(text: bytes) -> dict[str, Shape]:
    """Return the paths of the members whose values look like secrets, with what they look like.

    Args:
        text: a JSON text, or its beginning. Any other text gives nothing, or little.

    Returns:
        Paths that are selectors, too: `$.card.number`, `$.items[*].token`, `$.by_token.*`; at most `MOST_PATHS`.
    """
    found: dict[str, Shape] = {}
    seen: set[tuple[_Step, ...]] = set()
    for steps, value in _values(text[:MOST_BYTES]):
        shape = shape_of(next((step for step in reversed(steps) if step), b""), value)  # of a list: its own name
        if shape is None or (at := tuple(steps)) in seen:
            continue
        seen.add(at)
        path = "$" + "".join(map(_told_step, steps))
        if len(path) <= MOST_PATH:
            found.setdefault(path, shape)
            if len(found) == MOST_PATHS:
                break
    return found


# The values of a text

_STRING = rb'"((?:[^"\\\x00-\x1f]++|\\.)*+)"'
_TOKEN = re.compile(rb"[ \t\n\r]*+(?:%s|([{}\[\],:])|([-+.0-9A-Za-z]++))" % _STRING, re.DOTALL)


def _values(text: bytes) -> Iterator[tuple[list[_Step], bytes]]:
    """Yield the strings and numbers of a text, each with the steps that lead to it; until it is no JSON any more."""
    steps: list[_Step] = []
    closing: list[bytes] = []
    is_name_next, position, left = False, 0, MOST_VALUES
    while left and (token := _TOKEN.match(text, position)) is not None:
        position = token.end()
        string, mark, other = token.groups()
        if mark in (b"{", b"["):
            if len(steps) == MOST_DEPTH:
                return
            steps.append(None)
            closing.append(b"}" if mark == b"{" else b"]")
            is_name_next = mark == b"{"
        elif mark in (b"}", b"]"):
            if not closing or closing.pop() != mark:
                return
            steps.pop()
            is_name_next = False
        elif mark == b",":
            if not closing:
                return
            is_name_next = closing[-1] == b"}"
        elif mark == b":":
            is_name_next = False
        elif is_name_next:
            if string is None:
                return
            steps[-1] = string
        else:
            left -= 1
            yield steps, string if string is not None else other
        if not steps and mark is None:  # the text is one value, and has no members
            return


# Names

_IS_PLAIN = re.compile(rb"[A-Za-z_][A-Za-z0-9_-]{0,39}").fullmatch
_IS_SHORTHAND = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*").fullmatch
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_MOST_PARTS = 8
_MOST_DIGITS = 4
_SHORTEST_WORD, _LONGEST_WORD = 3, 14
# Which letters stand behind which in most words of English, counted in identifiers. Of random pairs of letters, a third
# are among them: of words of twelve random letters, one in ten thousand.
_FOLLOWERS = (
    "a:bcdgiklmnprstuvxy b:aeilorsu c:acehiklorstu d:adeilorsu e:abcdefgilmnopqrstvwxy f:aefilortu "
    "g:aehilnrsu h:aeiot i:abcdefglmnoprstvz k:ei l:adeilostuy m:abeimopsu n:acdefgilnostuv "
    "o:abcdfgilmnoprstuvw p:aeiloprstuy q:u r:acdegiklmnoprstuy s:acehilopstuy t:acdefhilmoprstuy "
    "u:abceilmnprst v:aei w:aei x:pt y:ps z:e "
)
_PAIRS = frozenset(pair[:1] + second for pair in _FOLLOWERS.split() for second in pair[2:])
_KNOWN = (
    "api apikey account address at auth bank bic birthday body by card cardholder cardnumber cardcode cc "
    "cid code country csc currency cvc cvv dob de employee employer exp expiry iban id ids in invoice ip "
    "is jwt kartennummer key keys kid kontonummer nachname no nr number oauth of on owner passport passwd "
    "passwort password payload payment phone pin personalausweis pwd sin sku ssn steuer subject tax tin "
    "to token type uri url user v vat vehicle vorname x year zip "
)
_KNOWN_WORDS = frozenset(_KNOWN.split())


def told_name(name: bytes) -> str | None:
    """Return the name of a member if it may be told, since it looks like one that somebody has thought of; else None.

    Such a name is short, has few digits, and is made of words: known ones, or of letters that follow one another in
    words. Random text is not, but by chance; the shorter it is, the more often.

    Args:
        name: as it stands between its quotes.
    """
    parts = _PARTS.findall(name.decode("ascii")) if _IS_PLAIN(name) else []
    digits = sum(len(part) for part in parts if part.isdigit())
    if not parts or len(parts) > _MOST_PARTS or digits > _MOST_DIGITS:
        return None
    return name.decode("ascii") if all(part.isdigit() or _is_word(part.lower()) for part in parts) else None


def _is_word(word: str) -> bool:
    if word in _KNOWN_WORDS:
        return True
    if not _SHORTEST_WORD <= len(word) <= _LONGEST_WORD:
        return False
    return all(word[at : at + 2] in _PAIRS for at in range(len(word) - 1))


def _told_step(step: _Step) -> str:
    if step is None:
        return "[*]"
    name = told_name(step)
    if name is None:
        return ".*"
    return f".{name}" if _IS_SHORTHAND(step) else f"['{name}']"


# Values

_WORDS = re.compile(rb"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_IS_CARD = re.compile(rb"[2-6][0-9](?:[ -]?[0-9]){11,17}").fullmatch
_IS_CARD_CODE = re.compile(rb"[0-9]{3,4}").fullmatch
_IS_IBAN = re.compile(rb"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}").fullmatch
_IS_SSN = re.compile(rb"(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}").fullmatch
_IS_BARE_SSN = re.compile(rb"(?!000|666|9)[0-9]{3}(?!00)[0-9]{2}(?!0000)[0-9]{4}").fullmatch
_IS_NINO = re.compile(rb"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?[0-9]{2}){3} ?[A-D]").fullmatch
_IS_CPF = re.compile(rb"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}").fullmatch
_IS_SIN = re.compile(rb"[1-79][0-9]{2}([ -])[0-9]{3}\1[0-9]{3}").fullmatch
_IS_DNI = re.compile(rb"[0-9XYZ][0-9]{7}-?[A-Z]").fullmatch
_IS_NIR = re.compile(rb"[12][0-9]{2}(?:0[1-9]|1[0-2]|[2-9][0-9])(?:[0-9]{2}|2[AB])[0-9]{8}").fullmatch
_IS_JWT = re.compile(rb"eyJ[A-Za-z0-9_-]{10,}+\.[A-Za-z0-9_-]++\.[A-Za-z0-9_-]*+(?:\.[A-Za-z0-9_-]++){0,2}").fullmatch
_IS_KNOWN = re.compile(
    rb"(?:sk|pk|rk|gh[pousr]|xox[abprs]|glpat|npm|pypi)[_-][A-Za-z0-9_-]{16,}+|AKIA[A-Z0-9]{16}"
).fullmatch
_IS_HEX = re.compile(rb"(?=[0-9]*[A-Fa-f])(?=[A-Fa-f]*[0-9])[0-9A-Fa-f]{32,}+").fullmatch
_IS_RANDOM = re.compile(rb"[A-Za-z0-9+/_-]{20,}+={0,2}").fullmatch
_KINDS_OF_CHARACTERS = tuple(map(re.compile, (rb"[A-Z]", rb"[a-z]", rb"[0-9]")))
_PASSWORDS = frozenset((b"password", b"passwd", b"pwd", b"passphrase", b"passcode", b"kennwort", b"passwort"))
_CARD_CODES = frozenset((b"cvv", b"cvc", b"csc", b"cid"))
_SOCIAL = frozenset((b"ssn", b"social"))
_TOKENS = frozenset((b"token", b"secret", b"apikey", b"credential", b"credentials", b"bearer", b"jwt"))
_SHORTEST_TOKEN = 8
_DNI_LETTERS = b"TRWAGMYFPDXBNJZSQVHLCKE"


def shape_of(name: bytes, value: bytes) -> Shape | None:
    """Return what a value looks like, or None if it looks like no secret.

    Args:
        name: the name of its member, as it stands between its quotes; empty for none.
        value: a string without its quotes, a number, or a literal.
    """
    if not 3 <= len(value) <= _MOST_VALUE or value in (b"true", b"false", b"null"):
        return None
    words = _words(name[:_LONGEST_NAME])
    if not _PASSWORDS.isdisjoint(words):
        return Shape.PASSWORD
    if _IS_CARD_CODE(value) and not _CARD_CODES.isdisjoint(words):
        return Shape.CARD_CODE
    for shape, looks in _BY_VALUE:
        if looks(value):
            return shape
    if not _SOCIAL.isdisjoint(words) and _IS_BARE_SSN(value):
        return Shape.NATIONAL_ID
    is_key = b"key" in words and not {b"api", b"access", b"private"}.isdisjoint(words)
    if len(value) >= _SHORTEST_TOKEN and (is_key or not _TOKENS.isdisjoint(words)) and b" " not in value:
        return Shape.TOKEN
    return None


_LONGEST_NAME = 128


def _words(name: bytes) -> list[bytes]:
    return [word.lower() for word in _WORDS.findall(name)]


def _digits(value: bytes) -> bytes:
    return bytes(byte for byte in value if 0x30 <= byte <= 0x39)


def _passes_luhn(digits: bytes) -> bool:
    doubled = (2 * (byte - 0x30) for byte in digits[-2::-2])
    return (sum(byte - 0x30 for byte in digits[::-2]) + sum(n - 9 if n > 9 else n for n in doubled)) % 10 == 0


def _is_card(value: bytes) -> bool:
    return bool(_IS_CARD(value)) and _passes_luhn(_digits(value))


def _is_iban(value: bytes) -> bool:
    """ISO 13616: the number that it makes leaves 1 when divided by 97."""
    if not _IS_IBAN(value):
        return False
    whole = value.replace(b" ", b"")
    return int("".join(str(int(chr(byte), 36)) for byte in whole[4:] + whole[:4])) % 97 == 1


def _is_national_id(value: bytes) -> bool:
    if _IS_SSN(value) or _IS_NINO(value):  # the United States, the United Kingdom: they have no check digits
        return True
    if _IS_SIN(value):  # Canada
        return _passes_luhn(_digits(value))
    if _IS_CPF(value):  # Brazil
        digits = [byte - 0x30 for byte in _digits(value)]
        return len(set(digits)) > 1 and all(
            sum(digit * (n + 1 - at) for at, digit in enumerate(digits[:n])) * 10 % 11 % 10 == digits[n]
            for n in (9, 10)
        )
    if _IS_DNI(value):  # Spain
        number = int(value[:8].translate(bytes.maketrans(b"XYZ", b"012")))
        return value[-1] == _DNI_LETTERS[number % 23]
    if _IS_NIR(value):  # France
        number = int(value[:13].replace(b"2A", b"19").replace(b"2B", b"18"))
        return 97 - number % 97 == int(value[13:])
    return False


def _is_token(value: bytes) -> bool:
    if value.startswith(b"-----BEGIN ") or _IS_JWT(value) or _IS_KNOWN(value) or _IS_HEX(value):
        return True
    if not _IS_RANDOM(value):
        return False
    # A path, an id of words or a sentence in camel case has long runs of small letters.
    return all(kind.search(value) for kind in _KINDS_OF_CHARACTERS) and len(_WORDS.findall(value)) * 4 > len(value)


_BY_VALUE: tuple[tuple[Shape, Callable[[bytes], bool]], ...] = (
    (Shape.NATIONAL_ID, _is_national_id),
    (Shape.IBAN, _is_iban),
    (Shape.CARD_NUMBER, _is_card),
    (Shape.TOKEN, _is_token),
)
