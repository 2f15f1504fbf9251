"""Marked fields of responses are opened on their way to the app; what cannot be opened does not reach it.

Proves ARCHITECTURE's rule 1 (fail closed) and rule 5 (touch only what is marked) for responses.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from proxy.core.jose.keys import Alg
from tests.e2e import wire
from tests.e2e.app import Way, ask, decision_of, fresh, open_way, request
from tests.e2e.certificates import Authority
from tests.e2e.codings import CODINGS, coded_as, decoded_from
from tests.e2e.connection import RecordedRequest
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOST = "app.example"
LOOSE = "loose.example"
HOSTS = (HOST, "p256.example", "x25519.example", "rsa.example", LOOSE, "free.example", "when.example")

POLICY = """
    limits: {{held_body: 65536}}
    keys:
      aes:
        alg: A256KW
        primary: {{file: {aes}}}
        older: [{{file: {aes_old}}}, {{file: {aes_gone}, not_after: {yesterday}}}]
      p256: {{alg: ECDH-ES+A256KW, primary: {{file: {p256}}}}}
      okp: {{alg: ECDH-ES+A256KW, primary: {{file: {okp}}}}}
      rsa: {{alg: RSA-OAEP-256, primary: {{file: {rsa}}}}}
      loose: {{alg: A256KW, primary: {{file: {aes}}}, bind: host}}
      free: {{alg: A256KW, primary: {{file: {aes}}}, bind: none}}
    rules:
      - {{name: aes, hosts: [app.example], response: [{{decrypt: ["$.card.number", "$.items[*].secret"], key: aes}}]}}
      - {{name: p256, hosts: [p256.example], response: [{{decrypt: ["$.card.number"], key: p256}}]}}
      - {{name: okp, hosts: [x25519.example], response: [{{decrypt: ["$.card.number"], key: okp}}]}}
      - {{name: rsa, hosts: [rsa.example], response: [{{decrypt: ["$.card.number"], key: rsa}}]}}
      - {{name: loose, hosts: [loose.example], response: [{{decrypt: ["$.card.number"], key: loose}}]}}
      - {{name: free, hosts: [free.example], response: [{{decrypt: ["$.card.number"], key: free}}]}}
      - name: when
        hosts: [when.example]
        response:
          - {{decrypt: ["$.card.number"], key: aes, when: {{methods: [POST], paths: [/cards/*]}}}}
          - {{decrypt: ["$.card.cvv"], key: aes, when: {{methods: [GET], paths: [/when/get]}}}}
"""

Make = Callable[..., TlsUpstream]


@pytest.fixture(scope="module")
def senders() -> dict[str, Receiver]:
    """Who seals for the sidecar: it holds the private halves of these keys."""
    return {
        "aes": Receiver("app-2", Alg.A256KW),
        "aes_old": Receiver("app-1", Alg.A256KW),
        "aes_gone": Receiver("app-0", Alg.A256KW),
        "p256": Receiver("p256"),
        "okp": Receiver("okp", curve="X25519"),
        "rsa": Receiver("rsa", Alg.RSA_OAEP_256),
    }


@pytest.fixture(scope="module")
def sidecar(
    authority: Authority, senders: dict[str, Receiver], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sidecar]:
    """One sidecar for all tests here: its policy changes in none of them."""
    folder = tmp_path_factory.mktemp("responses")
    files = {name: sender.write_private(folder) for name, sender in senders.items()}
    policy = POLICY.format(yesterday=(datetime.now(UTC) - timedelta(days=1)).date(), **files)
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


@pytest.fixture
def answering(tls_upstream: Make) -> Make:
    """Makes upstreams that answer every request with a body and header fields, or with the bytes given as `raw`."""

    def make(body: bytes = b"", *headers: tuple[str, str], raw: bytes | None = None) -> TlsUpstream:
        answer = wire.response(200, body, headers=headers) if raw is None else raw
        return fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: answer))

    return make


# What a server says of the bytes that it sends, what of it is left for other bytes, and what is not.
OF_THE_BODY = (
    ("ETag", '"x"'),
    ("Content-Digest", "sha-256=:AA==:"),
    ("Repr-Digest", "sha-256=:AA==:"),
    ("Digest", "sha-256=AA=="),
    ("Content-MD5", "AA=="),
    ("x-amz-checksum-sha256", "AA=="),
    ("Accept-Ranges", "bytes"),
    ("Last-Modified", "Sun, 29 Nov 2026 12:00:00 GMT"),
    ("X-Other", "kept"),
)
CHANGED = (("ETag", 'W/"x"'), *OF_THE_BODY[-2:])
GONE = {"content-digest", "repr-digest", "digest", "content-md5", "x-amz-checksum-sha256", "accept-ranges"}


def labelled(
    body: bytes,
    *types: str,
    status: str = "200 OK",
    coding: str = "",
    length: int | None = None,
    more: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """Return a response with these Content-Type fields, and no other."""
    fields = [*(("Content-Type", each) for each in types), *more]
    fields += [("Content-Encoding", coding)] if coding else []
    fields.append(("Content-Length", str(len(body) if length is None else length)))
    return f"HTTP/1.1 {status}\r\n".encode() + b"".join(f"{n}: {v}\r\n".encode() for n, v in fields) + b"\r\n" + body


def get(sidecar: Sidecar, upstream: TlsUpstream, host: str = HOST, **options: object) -> bytes:
    """Return the body of an answer that must be 200."""
    answer = ask(sidecar, upstream, host, method="GET", headers=(), **options)  # type: ignore[arg-type]  # passed on
    assert answer.status == 200, answer
    assert answer.headers.get("content-length") == str(len(answer.body))
    return answer.body


def assert_refused(
    sidecar: Sidecar, upstream: TlsUpstream, *hidden: bytes, host: str = HOST, **options: object
) -> None:
    """Check that the app gets a denial and nothing of what the upstream sent."""
    answer = ask(sidecar, upstream, host, method="GET", headers=(), **options)  # type: ignore[arg-type]  # passed on
    assert answer.status == 502
    assert answer.headers.get("content-type") == "application/problem+json"
    assert answer.json()["reason"] == "decryption_failed"
    line = decision_of(sidecar, upstream)
    assert (line["action"], line["reason"], line["status"], line["decrypted"]) == ("deny", "decryption_failed", 502, 0)
    for secret in hidden:
        assert secret not in answer.body
        assert secret.decode() not in json.dumps(line)


class TestOpened:
    @pytest.mark.parametrize("way", Way)
    def test_marked_values_are_opened_and_all_other_bytes_are_the_same(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver], way: Way
    ) -> None:
        body = (
            b' {"b":1.0e0 ,\t"card":{"number" : %s},\r\n'
            b'"items":[{"secret":%s}, {"secret":%s ,"\\u0061":"%s"}],"a":"\xc3\xa9"}\n'
        )
        other = senders["aes"].seal(b"1", HOST, "$.elsewhere")[1:-1]  # where no selector points, a token stays one
        values = [b'"4111 \\u0031"', b"{ }", b"[1 , 2]"]
        paths = ["$.card.number", "$.items[*].secret", "$.items[*].secret"]
        tokens = [senders["aes"].seal(value, HOST, path) for value, path in zip(values, paths, strict=True)]
        upstream = answering(body % (*tokens, other))
        assert get(sidecar, upstream, way=way) == body % (*values, other)
        assert decision_of(sidecar, upstream)["decrypted"] == 3

    @pytest.mark.parametrize(
        ("host", "name"),
        [
            (HOST, "aes"),
            (HOST, "aes_old"),
            ("p256.example", "p256"),
            ("x25519.example", "okp"),
            ("rsa.example", "rsa"),
        ],
    )
    def test_each_algorithm_and_an_older_key_open(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver], host: str, name: str
    ) -> None:
        token = senders[name].seal(b'"4111"', host, "$.card.number")
        upstream = answering(b'{"card":{"number":' + token + b"}}")
        assert get(sidecar, upstream, host) == b'{"card":{"number":"4111"}}'

    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("coding", [*CODINGS, "gzip, br", "ZSTD , identity,deflate"])
    def test_a_coded_response_stays_so_asked_for_or_not(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver], way: Way, coding: str
    ) -> None:
        token = senders["aes"].seal(b'"4111"', HOST, "$.card.number")
        coded = coded_as(coding, b'{"card":{"number":' + token + b"}}")
        upstream = answering(coded, ("Content-Encoding", coding))
        answer = ask(sidecar, upstream, HOST, way=way, method="GET", headers=())
        assert answer.headers.get("content-encoding") == coding
        assert answer.headers.get("content-length") == str(len(answer.body))
        assert decoded_from(coding, answer.body) == b'{"card":{"number":"4111"}}'
        assert decision_of(sidecar, upstream)["decrypted"] == 1

    def test_a_gzip_response_stays_gzip(self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]) -> None:
        token = senders["aes"].seal(b'"4111"', HOST, "$.card.number")
        body = b'{"card":{"number":' + token + b"}}"
        members = gzip.compress(body[:30]) + gzip.compress(body[30:])
        upstream = answering(members, ("Content-Encoding", "gzip"))
        assert gzip.decompress(get(sidecar, upstream)) == b'{"card":{"number":"4111"}}'

    def test_a_chunked_response_stays_chunked(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]
    ) -> None:
        body = b'{"card":{"number":' + senders["aes"].seal(b'"4111"', HOST, "$.card.number") + b"}}"
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 40]), body[i : i + 40]) for i in range(0, len(body), 40))
        head = b"HTTP/1.1 201 Made\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        upstream = answering(raw=head + chunks + b"0\r\n\r\n")
        answer = ask(sidecar, upstream, HOST, method="GET", headers=())
        assert (answer.status, answer.body) == (201, b'{"card":{"number":"4111"}}')
        assert answer.headers.get("transfer-encoding") == "chunked"

    @pytest.mark.parametrize(
        "types",
        [
            ("application/json",),
            ("Application/JSON; charset=utf-8",),
            ("application/problem+json",),
            ("text/json",),
            ("application/x-json;charset=UTF-8",),
            ("application/x-amz-json-1.1",),
            ("application/vnd.api+json; version=1",),
            (),
            ("",),
            ("json",),
            ("text/plain", "application/json"),
            ("application/json", "text/html"),
            ("application/json", "application/json"),
            ("text/html, application/json",),
        ],
    )
    def test_whatever_may_be_json_by_its_label_is_opened(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver], types: tuple[str, ...]
    ) -> None:
        body = b'{"card":{"number":' + senders["aes"].seal(b"1", HOST, "$.card.number") + b"}}"
        upstream = answering(raw=labelled(body, *types))
        assert get(sidecar, upstream) == b'{"card":{"number":1}}'
        assert decision_of(sidecar, upstream)["decrypted"] == 1

    @pytest.mark.parametrize("body", [b"not found", b"\x89PNG\r\n", b"<html>"])
    @pytest.mark.parametrize("types", [(), ("nonsense",), ("", "")])
    def test_a_body_without_a_label_that_is_no_json_passes_untouched(
        self, sidecar: Sidecar, answering: Make, body: bytes, types: tuple[str, ...]
    ) -> None:
        assert get(sidecar, answering(raw=labelled(body, *types))) == body
        packed = gzip.compress(body)
        assert get(sidecar, answering(raw=labelled(packed, *types, coding="gzip"))) == packed

    @pytest.mark.parametrize("body", [b' {"card" : {}} ', b"[1.0]", b""])
    def test_where_nothing_is_selected_the_very_same_bytes_arrive(
        self, sidecar: Sidecar, answering: Make, body: bytes
    ) -> None:
        assert get(sidecar, answering(body, ("ETag", '"x"'))) == body
        if body:
            packed = gzip.compress(body, 1)
            assert get(sidecar, answering(packed, ("Content-Encoding", "gzip"))) == packed

    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified"])
    @pytest.mark.parametrize("types", [("application/json",), ()])
    def test_a_response_without_a_body_tells_no_length_digest_or_strong_etag_of_the_sealed_one(
        self, sidecar: Sidecar, answering: Make, way: Way, status: str, types: tuple[str, ...]
    ) -> None:
        raw = labelled(b"", *types, status=status, length=123, more=OF_THE_BODY)
        for host, path in ((HOST, "/"), ("when.example", "/when/get")):
            method = "HEAD" if status.startswith("200") else "GET"
            answer = ask(sidecar, answering(raw=raw), host, path, way=way, method=method, headers=())
            assert answer.status == int(status[:3])
            assert answer.headers.get("content-length") is None
            assert [field for field in answer.headers.fields if field in CHANGED] == list(CHANGED)
            assert not [name for name, _ in answer.headers.fields if name.lower() in GONE]

    def test_a_response_without_a_body_and_without_fields_to_open_keeps_all(
        self, sidecar: Sidecar, answering: Make
    ) -> None:
        for host, path, types in ((HOST, "/", ("text/html",)), ("when.example", "/other", ("application/json",))):
            raw = labelled(b"", *types, length=123, more=OF_THE_BODY)
            answer = ask(sidecar, answering(raw=raw), host, path, method="HEAD", headers=())
            assert answer.headers.get("content-length") == "123"
            assert [field for field in answer.headers.fields if field in OF_THE_BODY] == list(OF_THE_BODY)

    @pytest.mark.parametrize("is_sealed", [True, False])
    def test_one_in_chunks_is_whole_however_it_is_framed_then(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver], is_sealed: bool
    ) -> None:
        body = b'{"card":{"number":%s}}'
        sealed = body % senders["aes"].seal(b"1", HOST, "$.card.number") if is_sealed else b'{"other":2}'
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in sealed) + b"0\r\n\r\n"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        upstream = answering(raw=head + chunks)
        authority = f"{HOST}:{upstream.port}"
        with open_way(sidecar, HOST, upstream.port) as client:
            for _ in range(2):  # and the next one begins where it ends
                client.send(request(f"http://{authority}/", authority, method="GET", headers=()))
                answer = client.read_response()
                assert answer.body == (body % b"1" if is_sealed else sealed)
                assert (answer.headers.get("content-length") is None) != (
                    answer.headers.get("transfer-encoding") is None
                )

    def test_a_changed_body_loses_what_was_said_of_the_sealed_one(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]
    ) -> None:
        body = b'{"card":{"number":' + senders["aes"].seal(b"1", HOST, "$.card.number") + b"}}"
        answer = ask(sidecar, answering(body, *OF_THE_BODY), HOST, method="GET", headers=())
        assert answer.body == b'{"card":{"number":1}}'
        assert [field for field in answer.headers.fields if field in CHANGED] == list(CHANGED)
        assert not [name for name, _ in answer.headers.fields if name.lower() in GONE]

    def test_an_unchanged_body_keeps_them(self, sidecar: Sidecar, answering: Make) -> None:
        answer = ask(sidecar, answering(b'{"card":{"number":null}}', *OF_THE_BODY), HOST, method="GET", headers=())
        assert [field for field in answer.headers.fields if field in OF_THE_BODY] == list(OF_THE_BODY)

    @pytest.mark.parametrize(("etag", "told"), [('W/"x"', 'W/"x"'), ('""', 'W/""'), ("x", None)])
    def test_an_etag_is_weak_afterwards(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver], etag: str, told: str | None
    ) -> None:
        body = b'{"card":{"number":' + senders["aes"].seal(b"1", HOST, "$.card.number") + b"}}"
        answer = ask(sidecar, answering(body, ("ETag", etag)), HOST, method="GET", headers=())
        assert answer.headers.get("etag") == told

    @pytest.mark.parametrize("value", [b'"4111-canary"', b"4111", b"null", b"true", b'{"number":"4111"}', b'""', b"[]"])
    def test_what_was_never_sealed_passes_as_it_came(self, sidecar: Sidecar, answering: Make, value: bytes) -> None:
        body = b' {"card":{"number":' + value + b"}} "
        upstream = answering(body)
        assert get(sidecar, upstream) == body
        assert decision_of(sidecar, upstream)["decrypted"] == 0

    def test_a_token_among_plain_values_is_opened(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]
    ) -> None:
        token = senders["aes"].seal(b'"opened"', HOST, "$.items[*].secret")
        body = b'{"items":[{"secret":"a.b.c.d.e"},{"secret":%s},{"secret":null}]}'
        upstream = answering(body % token)
        assert get(sidecar, upstream) == body % b'"opened"'
        assert decision_of(sidecar, upstream)["decrypted"] == 1

    def test_the_key_set_says_how_strictly_a_value_is_bound(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]
    ) -> None:
        opened = b'{"card":{"number":1}}'

        def answer(sealed_for: str, path: str) -> TlsUpstream:
            return answering(b'{"card":{"number":' + senders["aes"].seal(b"1", sealed_for, path) + b"}}")

        assert get(sidecar, answer(LOOSE, "$.elsewhere"), LOOSE) == opened
        assert_refused(sidecar, answer(HOST, "$.card.number"), host=LOOSE)
        assert get(sidecar, answer(HOST, "$.elsewhere"), "free.example") == opened

    def test_when_names_the_request_whose_response_is_opened(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]
    ) -> None:
        token = senders["aes"].seal(b"1", "when.example", "$.card.number")
        body = b'{"card":{"number":' + token + b"}}"
        for method, path, expected in (
            ("POST", "/cards/1", b'{"card":{"number":1}}'),
            ("GET", "/cards/1", body),
            ("POST", "/other", body),
        ):
            assert ask(sidecar, answering(body), "when.example", path, method=method).body == expected


class TestRefused:
    def test_a_token_for_another_key_set_is_not_opened(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]
    ) -> None:
        token = Receiver("app-2", Alg.A256KW).seal(b'"4111"', HOST, "$.card.number")  # the right name, another key
        assert_refused(sidecar, answering(b'{"card":{"number":' + token + b"}}"), token)

    @pytest.mark.parametrize("kid", ["app-0", "app-9"])
    def test_a_key_that_is_unknown_or_past_its_last_day_does_not_open(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver], kid: str
    ) -> None:
        sender = senders["aes_gone"] if kid == "app-0" else Receiver(kid, Alg.A256KW)
        token = sender.seal(b'"4111"', HOST, "$.card.number")
        assert_refused(sidecar, answering(b'{"card":{"number":' + token + b"}}"), token)

    @pytest.mark.parametrize(
        ("host", "path"), [("evil.example", "$.card.number"), (HOST, "$.card.cvv"), (HOST, "$.items[*].secret")]
    )
    def test_a_value_sealed_for_another_place_is_not_opened(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver], host: str, path: str
    ) -> None:
        token = senders["aes"].seal(b'"4111"', host, path)
        assert_refused(sidecar, answering(b'{"card":{"number":' + token + b"}}"), token)

    def test_a_token_that_was_cut_off_does_not_pass_as_plain_text(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]
    ) -> None:
        token = senders["aes"].seal(b'"4111"', HOST, "$.card.number")
        for cut in (token[:-30] + b'"', b".".join(token.split(b".")[:3]) + b'"'):
            assert_refused(sidecar, answering(b'{"card":{"number":' + cut + b"}}"), cut)

    def test_a_token_in_json_serialization_does_not_pass_as_a_plain_object(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]
    ) -> None:
        token = senders["aes"].seal(b'"4111"', HOST, "$.card.number").decode().strip('"')
        names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
        value = json.dumps(dict(zip(names, token.split("."), strict=True))).encode()
        assert_refused(sidecar, answering(b'{"card":{"number":' + value + b"}}"), value)

    def test_a_part_that_was_not_asked_for_is_refused(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]
    ) -> None:
        token = senders["aes"].seal(b'"4111"', HOST, "$.card.number")
        for media_type in ("application/json", "multipart/byteranges; boundary=x"):
            raw = labelled(b'{"card":{"number":' + token + b"}}", media_type, status="206 Partial Content")
            assert_refused(sidecar, answering(raw=raw), token)

    @pytest.mark.parametrize(
        "types", [(), ("text/event-stream", "application/json"), ("text/plain", "application/json")]
    )
    @pytest.mark.parametrize("body", [b'{"a":1}\n{"a":2}\n', b"\xef\xbb\xbf{}", '{"a":1}'.encode("utf-16")])
    def test_what_only_a_laxer_reader_takes_for_json_is_refused(
        self, sidecar: Sidecar, answering: Make, types: tuple[str, ...], body: bytes
    ) -> None:
        assert_refused(sidecar, answering(raw=labelled(body, *types)), body[-8:])

    def test_a_body_without_a_label_that_cannot_be_looked_at_is_refused(
        self, sidecar: Sidecar, answering: Make
    ) -> None:
        assert_refused(sidecar, answering(raw=labelled(b"canary", coding="dcb")), b"canary")

    def test_a_changed_token_is_not_opened(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]
    ) -> None:
        token = senders["aes"].seal(b'"4111"', HOST, "$.card.number")
        head, dot, tag = token.rpartition(b".")
        changed = head + dot + (b"A" if tag[:1] != b"A" else b"B") + tag[1:]
        assert_refused(sidecar, answering(b'{"card":{"number":' + changed + b"}}"))

    def test_plaintext_that_is_no_json_value_does_not_become_part_of_the_body(
        self, sidecar: Sidecar, answering: Make, senders: dict[str, Receiver]
    ) -> None:
        token = senders["aes"].seal(b'1,"admin":true', HOST, "$.card.number")
        assert_refused(sidecar, answering(b'{"card":{"number":' + token + b"}}"), b"admin")

    @pytest.mark.parametrize(
        ("body", "headers"),
        [
            pytest.param(b'{"card":', (), id="cut short"),
            pytest.param(b"<html>canary", (), id="no json"),
            pytest.param(b"canary", (("Content-Encoding", "compress"),), id="another coding"),
            *(
                pytest.param(CODINGS[each][0](b"[1, 2]")[:-1], (("Content-Encoding", each),), id=f"{each} cut off")
                for each in CODINGS
            ),
            *(
                pytest.param(CODINGS[each][0](b"[1, 2]") + b"\n", (("Content-Encoding", each),), id=f"{each} and more")
                for each in CODINGS
            ),
            *(
                pytest.param(CODINGS[each][0](bytes(70_000)), (("Content-Encoding", each),), id=f"a bomb of {each}")
                for each in CODINGS
            ),
            pytest.param(b" " * 70_000 + b"{}", (), id="too large"),
        ],
    )
    def test_a_json_response_that_cannot_be_read_is_refused(
        self, sidecar: Sidecar, answering: Make, body: bytes, headers: tuple[tuple[str, str], ...]
    ) -> None:
        assert_refused(sidecar, answering(body, *headers), b"canary")

    def test_one_in_chunks_is_replaced_by_a_denial_that_is_not(self, sidecar: Sidecar, answering: Make) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        upstream = answering(raw=head + b"1\r\n{\r\n0\r\n\r\n")
        authority = f"{HOST}:{upstream.port}"
        with open_way(sidecar, HOST, upstream.port) as client:
            for _ in range(2):  # and the next one begins where it ends
                client.send(request(f"http://{authority}/", authority, method="GET", headers=()))
                answer = client.read_response()
                assert (answer.status, answer.json()["reason"]) == (502, "decryption_failed")

    @pytest.mark.parametrize("more", [0, 1])
    def test_no_more_of_one_is_held_than_may_be_and_its_end_is_not_waited_for(
        self, sidecar: Sidecar, answering: Make, more: int
    ) -> None:
        body = b"{}" + b" " * (65536 - 2)
        if more:
            assert_refused(sidecar, answering(raw=labelled(body + b" ", "application/json", length=len(body) + 9)))
        else:
            assert get(sidecar, answering(body)) == body


class TestLeftAlone:
    @pytest.mark.parametrize("media_type", ["text/plain", "application/octet-stream", "text/html"])
    @pytest.mark.parametrize("coding", ["br", "gzip, gzip"])
    def test_what_is_no_json_passes_untouched(
        self, sidecar: Sidecar, answering: Make, media_type: str, coding: str
    ) -> None:
        body = bytes(range(256)) * 400
        upstream = answering(body, ("Content-Type", media_type), ("Content-Encoding", coding))
        assert get(sidecar, upstream) == body

    def test_what_is_no_json_is_streamed(self, sidecar: Sidecar, tls_upstream: Make) -> None:
        seen = threading.Event()

        def respond(_: RecordedRequest) -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nfirst"
            assert seen.wait(5), "the first half did not reach the app before the second was sent"
            yield b"other"

        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=respond))
        authority = f"{HOST}:{upstream.port}"
        with open_way(sidecar, HOST, upstream.port) as client:
            client.send(request(f"http://{authority}/", authority, method="GET", headers=()))
            assert client.read_until(b"first").endswith(b"\r\n\r\nfirst")
            seen.set()
            assert client.read_exactly(5) == b"other"

    @pytest.mark.parametrize(
        ("offered", "narrowed"),
        [
            ((("Accept-Encoding", "gzip, deflate, br, zstd"),), "gzip, deflate, br, zstd"),
            ((("Accept-Encoding", "br;q=1.0, dcb, GZIP;q=0.5"),), "br;q=1.0, GZIP;q=0.5"),
            ((("Accept-Encoding", "compress"),), "identity"),
            ((("Accept-Encoding", "*"),), "identity"),
            ((), "identity"),
        ],
    )
    def test_the_upstream_is_offered_only_codings_that_can_be_opened(
        self, sidecar: Sidecar, answering: Make, offered: tuple[tuple[str, str], ...], narrowed: str
    ) -> None:
        upstream = answering(b"{}")
        ask(sidecar, upstream, HOST, method="GET", headers=offered)
        (got,) = upstream.wait_for_requests(1)
        assert got.headers.get("accept-encoding") == narrowed

    @pytest.mark.parametrize("way", Way)
    def test_the_upstream_is_asked_for_no_part_and_gets_back_its_own_etags(
        self, sidecar: Sidecar, answering: Make, way: Way
    ) -> None:
        parts = (("Range", "bytes=0-9"), ("If-Range", '"x"'))
        conditions = (("If-Match", 'W/"a", "bW/" ,W/""'), ("If-None-Match", 'W/"a"'))
        upstream = answering(b"{}")
        ask(sidecar, upstream, HOST, way=way, method="GET", headers=(*parts, *conditions))
        (got,) = upstream.wait_for_requests(1)
        assert [
            field for field in got.headers.fields if field[0] in {"Range", "If-Range", "If-Match", "If-None-Match"}
        ] == [
            ("If-Match", '"a", "bW/" ,""'),
            ("If-None-Match", 'W/"a", "a"'),
        ]
        upstream = answering(b"{}")
        ask(sidecar, upstream, "when.example", way=way, method="GET", headers=(*parts, *conditions))
        (got,) = upstream.wait_for_requests(1)
        assert [field for field in got.headers.fields if field in (*parts, *conditions)] == [*parts, *conditions]

    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("own", ['"v1"', 'W/"v1"'])
    @pytest.mark.parametrize("before", ["{}", '"z", {}', "*"])
    def test_an_opened_copy_is_revalidated_with_a_server_that_compares_strictly(
        self, sidecar: Sidecar, tls_upstream: Make, senders: dict[str, Receiver], way: Way, own: str, before: str
    ) -> None:
        token = senders["aes"].seal(b"1", HOST, "$.card.number")
        fields = (("Content-Type", "application/json"), ("ETag", own))
        whole = wire.response(200, b'{"card":{"number":' + token + b"}}", headers=fields)

        def respond(request: RecordedRequest) -> bytes:
            tags = (request.headers.get("if-none-match") or "").split(", ")
            return f"HTTP/1.1 304 Not Modified\r\nETag: {own}\r\n\r\n".encode() if {own, "*"} & {*tags} else whole

        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=respond))
        first = ask(sidecar, upstream, HOST, way=way, method="GET", headers=())
        assert (first.status, first.body) == (200, b'{"card":{"number":1}}')
        tag = first.headers.get("etag")
        assert tag == 'W/"v1"'
        for method in ("GET", "HEAD"):
            condition = (("If-None-Match", before.format(tag)), ("Range", "bytes=0-3"), ("If-Range", tag))
            again = ask(sidecar, upstream, HOST, way=way, method=method, headers=condition)
            assert (again.status, again.headers.get("etag"), again.body) == (304, tag, b"")
        assert ask(sidecar, upstream, HOST, method="GET", headers=(("If-None-Match", '"v2"'),)).status == 200

    def test_where_nothing_is_opened_the_offer_is_the_apps(self, sidecar: Sidecar, answering: Make) -> None:
        upstream = answering(b"{}")
        ask(sidecar, upstream, "when.example", method="GET", headers=(("Accept-Encoding", "br"),))
        assert upstream.wait_for_requests(1)[0].headers.get("accept-encoding") == "br"
