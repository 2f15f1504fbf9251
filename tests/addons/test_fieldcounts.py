"""What is counted of fields is counted once, whenever somebody looks."""

from __future__ import annotations

from addons.fieldcounts import FieldCounts
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.fields.selectors import parse_selector
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.reasons import Reason

SEALS = FieldEntry((parse_selector("$.a"),), KeySet("k", Alg.A256KW, new_key(Alg.A256KW)), name="request[0]")
OPENS = FieldEntry(SEALS.selectors, SEALS.keys, Work.DECRYPT, name="response[0]")


def test_each_look_finds_what_is_new() -> None:
    counts = FieldCounts()
    assert not counts.take()
    counts.add((SEALS, OPENS), (2, 1))
    assert dict(counts.take()) == {("request[0]", Work.ENCRYPT): 2, ("response[0]", Work.DECRYPT): 1}
    assert not counts.take()
    counts.add((SEALS,), (3,))
    counts.fail("response[0]", Reason.DECRYPTION_FAILED)
    assert dict(counts.take()) == {("request[0]", Work.ENCRYPT): 3, ("response[0]", Reason.DECRYPTION_FAILED): 1}
    assert (counts.total(Work.ENCRYPT), counts.total(Work.DECRYPT)) == (5, 1)
    assert counts.by_entry() == {"request[0]": 5, "response[0]": 1}
    assert counts.failures() == {"response[0]": {"decryption_failed": 1}}


def test_what_has_not_left_is_forgotten_and_what_failed_is_not() -> None:
    counts = FieldCounts()
    counts.add((SEALS,), (2,))
    counts.fail("request[0]", Reason.SIGNED_BODY)
    counts.forget()
    assert (counts.total(Work.ENCRYPT), counts.by_entry()) == (0, {})
    assert dict(counts.take()) == {("request[0]", Reason.SIGNED_BODY): 1}


def test_an_entry_that_has_found_nothing_is_not_named() -> None:
    counts = FieldCounts()
    counts.add((SEALS, OPENS), (0, 1))
    assert counts.by_entry() == {"response[0]": 1}
