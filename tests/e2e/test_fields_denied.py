"""A body whose fields cannot be protected for certain is denied, and not one byte reaches the upstream.

Proves ARCHITECTURE's rule 1 (fail closed), rule 3 (nothing leaves early) and rule 7 (one reason code, the same in the
response, the decision line and the metric). Each refused body differs from one that passes in one property.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.e2e.app import JSON, Way, ask, assert_denied, decision_of, fresh, open_way, request
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient, curl
from tests.e2e.codings import CODINGS, coded_as
from tests.e2e.receiver import Marked, Receiver, assert_only_marked_changed, plain
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("pay.example", "old.example", "today.example")
LIMIT = 65536
GOOD = b'{"ssn":"078"}'

POLICY = """
    limits: {{held_body: 65536}}
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}
      old: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}, not_after: {yesterday}}}}}
      today: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}, not_after: {today}}}}}
    rules:
      - {{name: pay, hosts: [pay.example], request: [{{encrypt: ["$..ssn"], key: pay}}]}}
      - {{name: old, hosts: [old.example], request: [{{encrypt: ["$..ssn"], key: old}}]}}
      - {{name: today, hosts: [today.example], request: [{{encrypt: ["$..ssn"], key: today}}]}}
"""


def write_policy(folder: Path, receiver: Receiver) -> str:
    """Write the key, and return the policy."""
    now = datetime.now(UTC)
    days = {"yesterday": (now - timedelta(days=1)).date(), "today": (now + timedelta(minutes=5)).date()}
    return POLICY.format(pay=receiver.write_public(folder), **days)


@pytest.fixture(scope="module")
def sidecar(authority: Authority, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for all tests here: its policy changes in none of them."""
    folder = tmp_path_factory.mktemp("denied")
    hosts = dict.fromkeys(HOSTS, "127.0.0.1")
    with Sidecar(write_policy(folder, receiver), folder, authority=authority, hosts=hosts) as sidecar:
        yield sidecar


@pytest.fixture
def upstream(tls_upstream: Callable[..., TlsUpstream]) -> TlsUpstream:
    """An upstream that goes by all names of the policy."""
    return fresh(lambda: tls_upstream(*HOSTS))


def gzipped(body: bytes) -> bytes:
    """Return a gzip file that is the same each time."""
    return gzip.compress(body, mtime=0)


NOT_JSON = {
    "NaN": b'{"ssn":"078","x":NaN}',
    "Infinity": b'{"ssn":"078","x":-Infinity}',
    "half a surrogate pair in a name": b'{"ssn":"078","\\ud800":1}',
    "NUL in a name": b'{"ssn":"078","x\\u0000y":1}',
    "a marked name before NUL": b'{"ssn\\u0000x":"078"}',
    "a marked name before NUL, spelled in escapes": b'{"\\u0073sn\\u0000":"078"}',
    "NUL in a name further inside": b'{"a":[{"ssn":"078"},{"b":{"\\u0000":1}}]}',
    "NUL as it is in a name": b'{"ssn\x00x":"078"}',
    "an escape in a name that JSON does not know": b'{"ssn":"078","\\x00":1}',
    "a byte order mark": b'\xef\xbb\xbf{"ssn":"078"}',
    "UTF-16": '{"ssn":"078"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"ssn":"078"}'.encode("utf-16-le"),
    "Latin-1": '{"ssn":"078","name":"é"}'.encode("latin-1"),
    "an overlong form": b'{"ssn":"078","x":"\xc0\xaf"}',
    "cut short": b'{"ssn":"078"',
    "cut short in a string": b'{"ssn":"07',
    "two texts": b'{"ssn":"078"}{"ssn":"078"}',
    "JSON lines": b'{"ssn":"078"}\n{"ssn":"079"}\n',
    "a comment": b'{"ssn":"078"/**/}',
    "a comma too many": b'{"ssn":"078",}',
    "single quotes": b"{'ssn':'078'}",
    "no quotes": b'{ssn:"078"}',
    "a leading zero": b'{"ssn":012}',
    "a raw line feed in a string": b'{"ssn":"07\n8"}',
    "a NUL behind it": b'{"ssn":"078"}\0',
    "a form": b"ssn=078&x=1",
    "a prefix against hijacking": b')]}\',\n{"ssn":"078"}',
    "blanks only": b"  \n",
    "a multipart body": b'--b\r\nContent-Disposition: form-data; name="ssn"\r\n\r\n078\r\n--b--\r\n',
}


class TestNotJson:
    def test_the_twin_of_all_of_them_passes(self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver) -> None:
        assert ask(sidecar, upstream, "pay.example", body=GOOD).status == 200
        pieces = (b'{"ssn":', Marked(b'"078"', "$.ssn"), b"}")
        assert_only_marked_changed(upstream.wait_for_requests(1)[0].body, pieces, receiver, "pay.example")

    def test_nul_in_a_value_passes_and_so_does_a_backslash_before_u0000_in_a_name(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver
    ) -> None:
        pieces = (b'{"ssn":', Marked(b'"0\\u00008"', "$.ssn"), b',"free":"\\u0000","x\\\\u0000":1}')
        assert ask(sidecar, upstream, "pay.example", body=plain(pieces)).status == 200
        assert_only_marked_changed(upstream.wait_for_requests(1)[0].body, pieces, receiver, "pay.example")

    @pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
    def test_what_is_no_strict_json_is_denied(self, sidecar: Sidecar, upstream: TlsUpstream, body: bytes) -> None:
        answer = ask(sidecar, upstream, "pay.example", body=body)
        assert answer.status == 422
        assert_denied(sidecar, upstream, answer, "body_not_json")

    @pytest.mark.parametrize("name", ["cut short", "a form"])
    def test_the_same_holds_in_inspected_https(self, sidecar: Sidecar, upstream: TlsUpstream, name: str) -> None:
        answer = ask(sidecar, upstream, "pay.example", way=Way.CONNECT, body=NOT_JSON[name])
        assert answer.status == 422
        assert_denied(sidecar, upstream, answer, "body_not_json")

    @pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", "text/plain", "image/png"])
    def test_another_media_type_is_no_way_round(self, sidecar: Sidecar, upstream: TlsUpstream, media_type: str) -> None:
        answer = ask(sidecar, upstream, "pay.example", headers=(("Content-Type", media_type),), body=b"ssn=078")
        assert_denied(sidecar, upstream, answer, "body_not_json")

    def test_the_reason_is_counted_under_the_same_code(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        labels = {"rule": "pay", "action": "deny", "reason": "body_not_json"}
        before = sidecar.metrics().value("overcoat_requests_total", **labels)
        answer = ask(sidecar, upstream, "pay.example", body=b"{")
        assert_denied(sidecar, upstream, answer, "body_not_json")
        assert sidecar.metrics().value("overcoat_requests_total", **labels) == before + 1

    def test_deep_nesting_is_encrypted_right_and_quickly(
        self, authority: Authority, tmp_path: Path, upstream: TlsUpstream, receiver: Receiver
    ) -> None:
        depth = 30_000
        policy = write_policy(tmp_path, receiver).replace("held_body: 65536", "held_body: 2000000")
        with Sidecar(policy, tmp_path, authority=authority, hosts={"pay.example": "127.0.0.1"}) as sidecar:
            for count, (opening, closing) in enumerate(((b"[", b"]"), (b'{"a":', b"}")), start=1):
                core = opening * depth + b"1" + closing * depth
                pieces = (b'{"free":' + core + b',"ssn":', Marked(b'"078"', "$.ssn"), b"}")
                start = time.monotonic()
                assert ask(sidecar, upstream, "pay.example", body=plain(pieces)).status == 200
                assert time.monotonic() - start < 10
                got = upstream.wait_for_requests(count)[-1]
                assert_only_marked_changed(got.body, pieces, receiver, "pay.example")
                # Not balanced, and as deep: denied, not crashed.
                answer = ask(sidecar, upstream, "pay.example", body=opening * depth)
                assert (answer.status, answer.json()["reason"]) == (422, "body_not_json")


class TestEncodings:
    @pytest.mark.parametrize(
        "coding",
        ["compress", "dcb", "gzip, compress", "br,", "br, gzip, gzip, gzip", "hex", "base64", "gzip;q=1", "*"],
    )
    @pytest.mark.parametrize("body", [GOOD, gzipped(GOOD)], ids=["plain", "gzip"])
    def test_any_coding_that_is_not_read_is_denied_whatever_the_body(
        self, sidecar: Sidecar, upstream: TlsUpstream, coding: str, body: bytes
    ) -> None:
        answer = ask(sidecar, upstream, "pay.example", headers=(*JSON, ("Content-Encoding", coding)), body=body)
        assert answer.status == 415
        assert_denied(sidecar, upstream, answer, "encoding_unsupported")

    @pytest.mark.parametrize(
        ("charset", "body"),
        [
            ("utf-7", b'{"s+AHM-n":"078"}'),
            ("unicode_escape", b'{"\\\\u0073sn":"078"}'),
            ("utf-16", '{"ssn":"078"}'.encode("utf-16")),
            ("latin-1", GOOD),
        ],
    )
    def test_a_charset_in_which_other_names_may_be_read_is_denied(
        self, sidecar: Sidecar, upstream: TlsUpstream, charset: str, body: bytes
    ) -> None:
        headers = (("Content-Type", f"application/json; charset={charset}"),)
        assert_denied(
            sidecar, upstream, ask(sidecar, upstream, "pay.example", headers=headers, body=body), "encoding_unsupported"
        )

    def test_two_content_types_are_denied_and_a_charset_of_utf_8_passes(
        self, sidecar: Sidecar, upstream: TlsUpstream
    ) -> None:
        good = (("Content-Type", 'application/json; charset="utf-8"'),)
        assert ask(sidecar, upstream, "pay.example", headers=good, body=GOOD).status == 200
        twice = (*good, ("Content-Type", "application/json"))
        answer = ask(sidecar, upstream, "pay.example", headers=twice, body=GOOD)
        assert (answer.status, answer.json()["reason"]) == (415, "encoding_unsupported")
        assert len(upstream.requests) == 1

    def test_more_fields_than_can_be_encrypted_in_short_time_are_denied(
        self, sidecar: Sidecar, upstream: TlsUpstream
    ) -> None:
        many = b"[" + b",".join([b'{"ssn":1}'] * 5000) + b"]"
        answer = ask(sidecar, upstream, "pay.example", body=many)
        assert_denied(sidecar, upstream, answer, "body_too_large")

    def test_two_fields_are_two_codings(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        headers = (*JSON, ("Content-Encoding", "gzip"), ("Content-Encoding", "gzip"))
        answer = ask(sidecar, upstream, "pay.example", headers=headers, body=gzipped(GOOD))
        assert_denied(sidecar, upstream, answer, "encoding_unsupported")

    @pytest.mark.parametrize("coding", [*CODINGS, "gzip, br", "br, zstd"])
    @pytest.mark.parametrize("fault", ["cut off", "followed by a byte", "not so coded", "in another order"])
    def test_a_body_that_is_not_as_its_codings_say_is_denied(
        self, sidecar: Sidecar, upstream: TlsUpstream, coding: str, fault: str
    ) -> None:
        headers = (*JSON, ("Content-Encoding", coding))
        good = coded_as(coding, GOOD)
        reverse = coded_as(",".join(reversed(coding.split(","))), GOOD)
        body = {
            "cut off": good[:-1],
            "followed by a byte": good + b"x",
            "not so coded": GOOD,
            "in another order": reverse if "," in coding else good[1:],
        }
        assert ask(sidecar, upstream, "pay.example", headers=headers, body=good).status == 200
        answer = ask(sidecar, upstream, "pay.example", headers=headers, body=body[fault])
        assert (answer.status, answer.json()["reason"]) == (415, "encoding_unsupported")
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(gzipped(GOOD)[:-1], id="cut off by one byte"),
            pytest.param(gzipped(GOOD)[:12], id="cut off in its first block"),
            pytest.param(gzipped(GOOD)[:-8] + bytes(4) + gzipped(GOOD)[-4:], id="another checksum"),
            pytest.param(gzipped(GOOD)[:-4] + bytes(4), id="another length"),
            pytest.param(gzipped(GOOD) + b"x", id="followed by a byte"),
            pytest.param(gzipped(GOOD) + gzipped(b" ")[:-1], id="a second member that is cut off"),
            pytest.param(GOOD, id="not gzip at all"),
            pytest.param(zlib.compress(GOOD), id="zlib"),
        ],
    )
    def test_a_damaged_gzip_file_is_denied(self, sidecar: Sidecar, upstream: TlsUpstream, body: bytes) -> None:
        answer = ask(sidecar, upstream, "pay.example", headers=(*JSON, ("Content-Encoding", "gzip")), body=body)
        assert answer.status == 415
        assert_denied(sidecar, upstream, answer, "encoding_unsupported")

    def test_gzip_that_is_not_announced_is_no_json(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        answer = ask(sidecar, upstream, "pay.example", body=gzipped(GOOD))
        assert_denied(sidecar, upstream, answer, "body_not_json")

    def test_the_intact_file_passes(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        headers = (*JSON, ("Content-Encoding", "gzip"))
        assert ask(sidecar, upstream, "pay.example", headers=headers, body=gzipped(GOOD)).status == 200


def padded(size: int) -> bytes:
    """Return a body with a marked field that has exactly this many bytes."""
    return GOOD + b" " * (size - len(GOOD))


class TestTooLarge:
    @pytest.mark.parametrize("coding", ["", *CODINGS, "gzip, br"])
    @pytest.mark.parametrize("chunked", [False, True])
    def test_the_limit_itself_passes_and_one_byte_more_does_not(
        self, sidecar: Sidecar, upstream: TlsUpstream, coding: str, chunked: bool
    ) -> None:
        def send(size: int) -> int:
            body = coded_as(coding, padded(size)) if coding else padded(size)
            field = (("Content-Encoding", coding),) if coding else ()
            sent = {"chunks": [body[:99], body[99:]]} if chunked else {"body": body}
            answer = ask(sidecar, upstream, "pay.example", headers=(*JSON, *field), **sent)
            if answer.status != 200:
                assert answer.json()["reason"] == "body_too_large"
            return answer.status

        assert send(LIMIT) == 200
        before = len(upstream.received)
        assert send(LIMIT + 1) == 413
        upstream.settle()
        assert len(upstream.received) == before

    def test_a_length_that_is_too_large_is_answered_before_the_body(
        self, sidecar: Sidecar, upstream: TlsUpstream
    ) -> None:
        authority = f"pay.example:{upstream.port}"
        head = request(f"http://{authority}/", authority, headers=(*JSON, ("Content-Length", "999999999999")))
        with RawClient(sidecar.address) as client:
            client.send(head.replace(b"Content-Length: 0\r\n", b""))
            answer = client.read_response()
        assert answer.status == 413
        assert_denied(sidecar, upstream, answer, "body_too_large")

    def test_an_app_that_is_still_sending_gets_its_answer(
        self, sidecar: Sidecar, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        big = tmp_path / "big.json"
        big.write_bytes(padded(600_000))
        url = upstream.url("/v1", host="pay.example")
        answer = curl("-T", str(big), "-H", "Expect:", url, proxy=sidecar.proxy_url)
        assert answer.status == 413, answer.error
        assert_denied(sidecar, upstream, answer, "body_too_large")

    def test_an_app_that_asks_before_it_sends_is_told_no(
        self, sidecar: Sidecar, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        big = tmp_path / "big.json"
        big.write_bytes(padded(600_000))
        url = upstream.url("/v1", host="pay.example")
        answer = curl("-T", str(big), "-H", "Expect: 100-continue", url, proxy=sidecar.proxy_url)
        assert answer.status == 413, answer.error
        assert_denied(sidecar, upstream, answer, "body_too_large")

    def test_after_a_small_body_too_large_the_connection_serves_on(
        self, sidecar: Sidecar, upstream: TlsUpstream
    ) -> None:
        authority = f"pay.example:{upstream.port}"
        with RawClient(sidecar.address) as client:
            client.send(request(f"http://{authority}/", authority, chunks=[padded(LIMIT + 1)]))
            assert client.read_response().status == 413
            client.send(request(f"http://{authority}/next", authority, body=GOOD))
            assert client.read_response().status == 200
        assert [got.target for got in upstream.wait_for_requests(1)] == ["/next"]

    @pytest.mark.parametrize("kind", ["endless chunks", "a gzip bomb"])
    def test_memory_stays_bounded(self, sidecar: Sidecar, upstream: TlsUpstream, kind: str) -> None:
        before = sidecar.resident_bytes()
        if kind == "a gzip bomb":
            packer = zlib.compressobj(9, wbits=31)
            bomb = b"".join([packer.compress(b" " * 10_000_000) for _ in range(6)]) + packer.flush()
            assert len(bomb) < LIMIT  # so that it is the decoded size which counts
            answer = ask(sidecar, upstream, "pay.example", headers=(*JSON, ("Content-Encoding", "gzip")), body=bomb)
        else:
            authority = f"pay.example:{upstream.port}"
            head = request(f"http://{authority}/", authority, chunks=[]).removesuffix(b"0\r\n\r\n")
            with RawClient(sidecar.address) as client:
                client.send(head)
                try:
                    for _ in range(1000):
                        client.send(b"10000\r\n" + b" " * 65536 + b"\r\n")
                except OSError:
                    pass  # enough was enough: the sidecar closed after its answer
                answer = client.read_response()
        assert answer.status == 413
        assert_denied(sidecar, upstream, answer, "body_too_large")
        assert sidecar.resident_bytes() - before < 20_000_000


class TestSignedBodies:
    @pytest.mark.parametrize(
        "field", [("Content-Digest", "sha-256=:AA==:"), ("Repr-Digest", "x"), ("Digest", "x"), ("Content-MD5", "x")]
    )
    def test_a_digest_over_what_must_change_is_denied(
        self, sidecar: Sidecar, upstream: TlsUpstream, field: tuple[str, str]
    ) -> None:
        answer = ask(sidecar, upstream, "pay.example", headers=(*JSON, field), body=GOOD)
        assert answer.status == 422
        assert_denied(sidecar, upstream, answer, "signed_body")


class TestKeys:
    def test_a_key_past_its_last_day_encrypts_nothing(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        answer = ask(sidecar, upstream, "old.example", body=GOOD)
        assert_denied(sidecar, upstream, answer, "key_unavailable")

    def test_on_its_last_day_it_does(self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver) -> None:
        assert ask(sidecar, upstream, "today.example", body=GOOD).status == 200
        token = json.loads(upstream.wait_for_requests(1)[0].body)["ssn"].encode()
        assert receiver.open(token, host="today.example", path="$.ssn") == b'"078"'


WRAPPER = """\
import sys
sys.path.insert(0, {tests!r})
import named_hosts
named_hosts.install({hosts!r})
sys.path.append({root!r})
import proxy.core.fields.splice
def raises(*_, **__):
    raise ValueError("the body was canary-4111")
proxy.core.fields.splice.splice = raises
from proxy.cli import main
main()
"""


class TestFaults:
    def test_a_fault_in_the_machinery_denies_and_tells_nothing_of_the_body(
        self, authority: Authority, tmp_path: Path, upstream: TlsUpstream, receiver: Receiver
    ) -> None:
        hosts = dict.fromkeys(HOSTS, "127.0.0.1")
        wrapper = tmp_path / "wrapper.py"
        wrapper.write_text(WRAPPER.format(tests=str(Path(__file__).parent), hosts=hosts, root=str(ROOT)))
        command = [sys.executable, "-P", str(wrapper)]
        with Sidecar(write_policy(tmp_path, receiver), tmp_path, authority=authority, command=command) as sidecar:
            answer = ask(sidecar, upstream, "pay.example", body=GOOD)
            assert answer.status == 500
            assert_denied(sidecar, upstream, answer, "internal_error")
            metrics = sidecar.metrics()
            assert metrics.value("overcoat_hook_failures_total") == 1
            assert metrics.value("overcoat_requests_total", reason="internal_error") == 1
            # What needs no splicing is served on.
            assert ask(sidecar, upstream, "pay.example", method="GET").status == 200
        assert "canary" not in sidecar.stdout + sidecar.stderr + answer.body.decode() + metrics.text
        assert "ValueError in raises (wrapper.py" in sidecar.stderr


class TestCutShort:
    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_that_its_app_cuts_short_never_leaves(
        self, sidecar: Sidecar, upstream: TlsUpstream, way: Way, chunked: bool
    ) -> None:
        authority = f"pay.example:{upstream.port}"
        target = f"http://{authority}/" if way is Way.HTTP else "/"
        whole = request(target, authority, chunks=[GOOD]) if chunked else request(target, authority, body=GOOD)
        with open_way(sidecar, "pay.example", upstream.port, way) as client:
            client.send(whole[:-6])
        line = decision_of(sidecar, upstream)
        assert (line["status"], line["encrypted"]) == (None, 0)
        upstream.assert_no_application_bytes()
