"""What looks like a secret in a JSON text, and which names of members are told."""

from __future__ import annotations

import json
import random
import string

import pytest

from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.shapes import MOST_BYTES, MOST_DEPTH, MOST_PATHS, MOST_VALUES, Shape, shape_of, shapes, told_name

CARD = "4111111111111111"
JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (CARD, Shape.CARD_NUMBER),
        ("4111 1111 1111 1111", Shape.CARD_NUMBER),
        ("5555-5555-5555-4444", Shape.CARD_NUMBER),
        ("378282246310005", Shape.CARD_NUMBER),
        ("4111111111111112", None),  # its check digit is wrong
        ("1234567890128", None),  # no card begins like this: a time in milliseconds does
        ("411111111111", None),
        ("078-05-1120", Shape.NATIONAL_ID),
        ("000-05-1120", None),
        ("078051120", None),  # only with a name that says so
        ("AB 12 34 56 C", Shape.NATIONAL_ID),
        ("BG123456C", None),
        ("529.982.247-25", Shape.NATIONAL_ID),
        ("529.982.247-26", None),
        ("111.111.111-11", None),
        ("130-692-544", Shape.NATIONAL_ID),
        ("130-692-545", None),
        ("12345678Z", Shape.NATIONAL_ID),
        ("12345678A", None),
        ("X1234567L", Shape.NATIONAL_ID),
        ("255081416802538", Shape.NATIONAL_ID),
        ("190012A00100157", None),
        ("190012A00100156", Shape.NATIONAL_ID),
        ("DE89370400440532013000", Shape.IBAN),
        ("GB82 WEST 1234 5698 7654 32", Shape.IBAN),
        ("GB82 WEST 1234 5698 7654 33", None),
        (JWT, Shape.TOKEN),
        ("sk_live_aaaaaaaaaaaaaaaa", Shape.TOKEN),
        ("AKIAIOSFODNN7EXAMPLE", Shape.TOKEN),
        ("-----BEGIN PRIVATE KEY-----\\nMIIEvQ", Shape.TOKEN),
        ("5f4dcc3b5aa765d61d8327deb882cf99", Shape.TOKEN),
        ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", Shape.TOKEN),
        ("550e8400-e29b-41d4-a716-446655440000", None),  # a UUID names something, and mostly is no secret
        ("thisIsAVeryLongIdentifierInCamelCase123", None),
        ("2026-11-30T02:47:09Z", None),
        ("https://api.example/v1/Charges/1234567890", None),
        ("true", None),
        ("ab", None),
        ("A1b2" * 2000, None),  # a picture
    ],
)
def test_what_a_value_alone_looks_like(value: str, shape: Shape | None) -> None:
    assert shape_of(b"x", value.encode()) is shape


@pytest.mark.parametrize(
    ("name", "value", "shape"),
    [
        ("password", "hunter2", Shape.PASSWORD),
        ("userPassword", "hunter2", Shape.PASSWORD),
        ("new_passwd", "hunter2", Shape.PASSWORD),
        ("password", "", None),
        ("passwordless", "hunter2", None),
        ("cvv2", "123", Shape.CARD_CODE),
        ("cardCvc", "1234", Shape.CARD_CODE),
        ("cvc", "12345", None),
        ("code", "123", None),
        ("ssn", "078051120", Shape.NATIONAL_ID),
        ("socialSecurityNumber", "078051120", Shape.NATIONAL_ID),
        ("ssn", "000051120", None),
        ("accessToken", "abcdefgh", Shape.TOKEN),
        ("client_secret", "abcdefgh", Shape.TOKEN),
        ("api_key", "abcdefgh", Shape.TOKEN),
        ("privateKey", "abcdefgh", Shape.TOKEN),
        ("key", "abcdefgh", None),
        ("token", "abcdefg", None),
        ("token", "a few words", None),
    ],
)
def test_what_it_looks_like_with_its_name(name: str, value: str, shape: Shape | None) -> None:
    assert shape_of(name.encode(), value.encode()) is shape


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            {"card": {"number": CARD, "cvv": "123"}, "note": "x"},
            {"$.card.number": "card_number", "$.card.cvv": "card_code"},
        ),
        ({"items": [{"card-number": CARD}, {"card-number": CARD}]}, {"$.items[*]['card-number']": "card_number"}),
        ({"number": int(CARD)}, {"$.number": "card_number"}),
        ({"passwords": [], "password": ["hunter2"]}, {"$.password[*]": "password"}),
        ({"a": [[{}], {"b": []}], "pin": None, "password": "hunter2"}, {"$.password": "password"}),
        ({JWT: {"token": JWT}}, {"$.*.token": "token"}),
        ({"tokens": {"Zk3xQ9vB7nM2wR5t": "Zk3xQ9vB7nM2wR5tYu8"}}, {}),
        ({"by": {"078-05-1120": "078-05-1120"}}, {"$.by.*": "national_id"}),
        (CARD, {"$": "card_number"}),
        ([], {}),
    ],
)
def test_the_paths_of_a_text(text: object, found: dict[str, str]) -> None:
    for indent in (None, 1):
        told = shapes(json.dumps(text, indent=indent).encode())
        assert told == found
    for path in found:
        parse_selector(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>password=hunter2</html>",
        'password: "hunter2"',
        '{password: "hunter2"}',
        '{"a": 1}}, {"password": "hunter2"}',
        '{"a": [1}, "password": "hunter2"}',
        '1, {"password": "hunter2"}',
        '{}, {"password": "hunter2"}',
        '{"password": "hunter2',
        "[" * (MOST_DEPTH + 1) + '{"password": "hunter2"}',
        json.dumps([0] * MOST_VALUES)[:-1] + ', {"password": "hunter2"}]',
        json.dumps(["x" * MOST_BYTES, {"password": "hunter2"}]),
    ],
)
def test_what_is_no_json_or_comes_too_late_gives_nothing(text: str) -> None:
    assert shapes(text.encode()) == {}


def test_what_was_found_before_counts_and_several_texts_do() -> None:
    assert shapes(b'{"password": "hunter2"}\n{"pwd": "hunter2"} }') == {"$.password": "password", "$.pwd": "password"}


def test_only_so_much_is_told() -> None:
    names = [f"password_{first}{second}" for first in ("user", "card", "line") for second in range(10)]
    assert len(shapes(json.dumps(dict.fromkeys(names, "hunter2")).encode())) == MOST_PATHS
    deep: object = {"password": "hunter2"}
    for _ in range(12):
        deep = {"authentication": deep}
    assert shapes(json.dumps(deep).encode()) == {}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "card",
            "number",
            "cardNumber",
            "card_number",
            "card-number",
            "cvv2",
            "ssn",
            "accessToken",
            "api_key",
            "APIKey",
        ),
        *(
            "client_secret",
            "socialSecurityNumber",
            "taxIdentificationNumber",
            "iban",
            "addressLine1",
            "exp_year",
            "_id",
        ),
        *("dateOfBirth", "external_account_reference", "stripeCustomerID", "oauth2Token", "kontonummer", "passwort"),
    ],
)
def test_names_that_somebody_has_thought_of_are_told(name: str) -> None:
    assert told_name(name.encode()) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "a b", "1a", "a.b", "jane@example.com", "078-05-1120", "a" * 41, "ünder", 'a"b', "\\u0061", "_", "---"),
        *(
            "DE89370400440532013000",
            "card12345",
            "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
            "xkcd",
            "qwrtz",
            "internationalisations",
        ),
        "a_b_c_d_e_f_g_h_i",
    ],
)
def test_others_are_not(name: str) -> None:
    assert told_name(name.encode()) is None


@pytest.mark.parametrize(
    "alphabet",
    [
        string.ascii_letters,
        string.ascii_letters + string.digits + "-_",
        string.ascii_lowercase,
        string.ascii_lowercase + string.digits,
        string.ascii_uppercase + "234567",
        string.hexdigits.lower(),
    ],
)
def test_random_text_is_never_told_where_it_is_long_enough_for_a_secret(alphabet: str) -> None:
    chance = random.Random(16)  # the same names in each run
    for length in (16, 20, 24, 32, 40):
        for _ in range(2000):
            name = "".join(chance.choice(alphabet) for _ in range(length))
            assert told_name(name.encode()) is None, name
