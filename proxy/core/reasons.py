"""Every reason for which a request can be denied, with all that is said of it, and how a request ends for it. A denial
(`proxy.core.decisions`) has one; docs/generate.py writes docs/reasons.md of them.

Rules of this module:

- The reasons are a closed enum, so no client can choose the value of a metric label.
- Each request and each tunnel ends in exactly one `Outcome`; a reason always leads to the same one.
"""

from __future__ import annotations

from enum import Enum, StrEnum


class Outcome(StrEnum):
    """How a request or a tunnel ended."""

    OK = "ok"  # as it should, and as the policy says
    OBSERVED = "observed"  # the same in observe mode, in which nothing is enforced
    DENIED = "denied"
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_CUT = "upstream_cut"
    APP_LEFT = "app_left"
    DRAINED = "drained"
    IDLE = "idle"


class Reason(Enum):
    """Why a request was denied. The value is (code, HTTP status, RFC 9209 error type, title, meaning, hint)."""

    BAD_REQUEST = (
        "bad_request",
        400,
        "http_request_error",
        "The request is malformed",
        "The request line, a header field or the destination is not valid HTTP, or was not meant for a proxy; or the "
        "app does not keep to WebSocket, where its messages are read.",
        "see what the app sends, or what stands between it and Overcoat: the detail says what is wrong with it",
    )
    HEADERS_TOO_LARGE = (
        "headers_too_large",
        431,
        "http_request_error",
        "The request's header section is too large",
        "The request line and header fields together are longer than Overcoat reads.",
        "make the app send less (cookies, mostly), or raise limits.header_bytes and limits.header_count",
    )
    REQUEST_TIMEOUT = (
        "request_timeout",
        408,
        "http_request_error",
        "The request took too long to arrive",
        "The app did not send a whole head, or a body that is held, within `limits.request_seconds`.",
        "see why the app takes so long to send, or raise limits.request_seconds",
    )
    IDLE_TIMEOUT = (
        "idle_timeout",
        408,
        "connection_timeout",
        "Nothing moved for too long",
        "A request, a response or a tunnel was under way, and no byte of it passed for `limits.idle_seconds`. Where a "
        "response has not begun, it is `upstream_timeout`.",
        "raise limits.idle_seconds if so long a silence is meant",
    )
    DRAIN_TIMEOUT = (
        "drain_timeout",
        503,
        "proxy_internal_response",
        "Overcoat was stopped before this was over",
        "Overcoat was told to end, and what was under way had `drain_timeout` to come to its own end.",
        "ask again; raise drain_timeout, and how long the supervisor waits before it kills, if so long is meant",
    )
    POLICY_CHANGED = (
        "policy_changed",
        503,
        "proxy_internal_response",
        "The policy has changed for what was open",
        "A tunnel, a WebSocket or a long response went on after a reload that changed its host's pins, trust or rule, "
        "or who may use the proxy; or after its pins' last day.",
        "open it again: it is then decided by the policy in force. open_connections: keep leaves alone what is open",
    )
    TOO_MANY_CONNECTIONS = (
        "too_many_connections",
        503,
        "proxy_internal_response",
        "Too many connections are open",
        "There are as many client connections, in all or from this address, as `limits` lets be.",
        "let the app reuse its connections, or raise the limit",
    )
    CLIENT_FORBIDDEN = (
        "client_forbidden",
        403,
        "http_request_denied",
        "This client may not use the proxy",
        "The policy's `clients.allow` does not name the address that the app connects from.",
        "add the app's address or network to clients.allow",
    )
    PROXY_AUTHENTICATION_REQUIRED = (
        "proxy_authentication_required",
        407,
        "http_request_denied",
        "The proxy wants a name and a password",
        "The policy has `clients.users`, and the request carries no Proxy-Authorization of one of them.",
        "give name and password to the app in the proxy's URL: http://NAME:PASSWORD@HOST:PORT",
    )
    TOO_MANY_ATTEMPTS = (
        "too_many_attempts",
        429,
        "http_request_denied",
        "Too many passwords were tried",
        "Verifying a password takes time on purpose, and how often that is done in a second is limited.",
        "try again in a second",
    )
    APP_TLS_FAILED = (
        "app_tls_failed",
        400,
        "http_request_error",
        "The app did not complete TLS",
        "The https of this host is inspected, and the app ended the handshake: mostly since it does not trust the "
        "local CA.",
        "make the app trust the local CA, which `overcoat ca` prints (docs/apps.md says how for each runtime)",
    )
    LOCAL_CA_EXPIRED = (
        "local_ca_expired",
        503,
        "proxy_configuration_error",
        "The local CA has ended",
        "The https of this host is inspected, and the CA that signs the certificates for that is not valid any more "
        "(or not yet, by this machine's clock). Upgrades and tunnels go on.",
        "run `overcoat ca rotate` with Overcoat's data directory ($OVERCOAT_DATA), and make the apps trust the new CA, "
        "which `overcoat ca` prints",
    )
    LOCAL_CA_CONSTRAINED = (
        "local_ca_constrained",
        503,
        "proxy_configuration_error",
        "The local CA may not sign for this host",
        "The https of this host is inspected, and the CA that signs the certificates for that is constrained to other "
        "hosts: it was put in its place while this policy was in force. Upgrades and tunnels go on.",
        "run `overcoat ca rotate` with this policy, and then, once the apps trust the new CA, `overcoat ca rotate "
        "--finish`",
    )
    NOT_HTTP = (
        "not_http",
        400,
        "http_request_error",
        "Only HTTP and TLS pass here",
        "What came through CONNECT is neither a complete TLS ClientHello nor an HTTP request.",
        "if the app must speak another protocol to that host and port, give them a rule with raw_tcp: allow",
    )
    HOST_MISMATCH = (
        "host_mismatch",
        421,
        "http_request_error",
        "Host and destination disagree",
        "The Host header, the TLS server name and the address that would be dialled do not name the same host.",
        "make the app use one name for the host: in its URL, its Host header and its TLS server name",
    )
    MISDIRECTED = (
        "misdirected",
        421,
        "http_request_error",
        "No server for this host is here",
        "The request came to a mirror listener, and its Host or TLS server name is none for which that stands (`for`).",
        "send the request to the host that it is for, or add its name to the listener's `for`",
    )
    PLAIN_HTTP_REJECTED = (
        "plain_http_rejected",
        403,
        "http_request_denied",
        "Plain http is not allowed to this host",
        "The policy says `plain_http: reject` for this destination.",
        "use https in the app, or set plain_http: upgrade for this host",
    )
    HTTPS_REJECTED = (
        "https_rejected",
        403,
        "http_request_denied",
        "Https is not allowed to this host",
        "The policy says `https: reject` for this destination.",
        "set https: tunnel or https: inspect for this host if the app may use it",
    )
    DESTINATION_FORBIDDEN = (
        "destination_forbidden",
        403,
        "destination_ip_prohibited",
        "This destination is forbidden",
        "The address that would be dialled is not public and not in `destinations.allow` of the policy or the host's "
        "rule, or is one of Overcoat's own listeners; or the host is in no rule, where `destinations.egress` is "
        "`listed`.",
        "what is the app's own or beside it belongs in the app's NO_PROXY; what Overcoat is to carry, in a rule whose "
        "destinations.allow names its network",
    )
    REQUEST_LOOP = (
        "request_loop",
        508,
        "http_request_error",
        "The request leads in a circle",
        "Its Via field names this proxy (the policy's `via`): it has come through here before.",
        "see that no proxy's way out leads back to this one, and that each has a name of its own",
    )
    NO_FORWARDS_LEFT = (
        "no_forwards_left",
        508,
        "http_request_error",
        "The request may go no further",
        "It is a TRACE or OPTIONS whose Max-Forwards is 0, so that this proxy answers it (RFC 9110, section 7.6.2).",
        "raise Max-Forwards to reach the next proxy, or the server",
    )
    UPSTREAM_UNREACHABLE = (
        "upstream_unreachable",
        502,
        "destination_unavailable",
        "The upstream cannot be reached",
        "Name resolution or the TCP connection failed. Nothing was sent.",
        "check that the host is up, and reachable from where Overcoat runs",
    )
    UPSTREAM_PROXY_FAILED = (
        "upstream_proxy_failed",
        502,
        "destination_unavailable",
        "The upstream proxy opened no way",
        "The policy's `upstream_proxy` refused CONNECT, or gave no answer. Nothing goes past it.",
        "check upstream_proxy.url, and that the proxy there is up and lets this destination through",
    )
    UPSTREAM_TIMEOUT = (
        "upstream_timeout",
        504,
        "connection_timeout",
        "The upstream did not answer in time",
        "The TCP connection or the TLS handshake took longer than the limit, and nothing was sent; or the request was, "
        "and no response began within `limits.response_seconds` (then with the error `http_response_timeout`).",
        "check that the host is up, reachable from where Overcoat runs, and not too busy to answer",
    )
    TLS_FAILED = (
        "tls_failed",
        502,
        "tls_protocol_error",
        "The TLS handshake failed",
        "The upstream speaks no TLS, or no version, cipher or group that the policy accepts, or ended the handshake "
        "with an alert, which the detail names. There is no fallback to http.",
        "give the host a rule whose https_port is the one where it speaks TLS, and check trust.min_tls",
    )
    KEY_EXCHANGE_REFUSED = (
        "key_exchange_refused",
        502,
        "tls_protocol_error",
        "The upstream offers no hybrid key exchange",
        "The policy demands X25519MLKEM768 (`trust.key_exchange: hybrid`), and the upstream does not agree on it.",
        "have the upstream's TLS support X25519MLKEM768 (OpenSSL 3.5 and newer do), or write key_exchange: any for it",
    )
    CLIENT_CERTIFICATE_REFUSED = (
        "client_certificate_refused",
        502,
        "tls_alert_received",
        "The upstream wants another client certificate",
        "The upstream asked for a client certificate, and the rule has none; or it did not accept the rule's.",
        "give the rule a client_certificate that the upstream accepts",
    )
    CERTIFICATE_INVALID = (
        "certificate_invalid",
        502,
        "tls_certificate_error",
        "The upstream's certificate is not valid",
        "The chain does not lead to a trusted root, has expired, was revoked (or no valid list of `trust.crls` says it "
        "was not), does not name this host, or lacks the form that RFC 5280 prescribes (`trust.strict`).",
        "fix the upstream's certificate, or name its CA in trust.roots",
    )
    PIN_MISMATCH = (
        "pin_mismatch",
        502,
        "tls_certificate_error",
        "The upstream's key matches no pin",
        "The certificate chain is valid, but none of its keys is pinned for this host.",
        "if the server's operator confirms its key, add that to the rule's pins.any_of",
    )
    PINS_EXPIRED = (
        "pins_expired",
        502,
        "tls_certificate_error",
        "The pins have expired",
        "The rule's pins are past their `expires` date, so they can no longer vouch for the upstream.",
        "check the server's key, then renew pins.any_of and pins.expires",
    )
    UPSTREAM_FAILED = (
        "upstream_failed",
        502,
        "http_response_incomplete",
        "The upstream gave no usable response",
        "The upstream closed the connection, or answered with something that is not valid HTTP.",
        "look at the upstream: what is not whole, or not valid HTTP, is not passed on",
    )
    UPSTREAM_CUT = (
        "upstream_cut",
        502,
        "http_response_incomplete",
        "The upstream broke its response off",
        "The response ended in the middle, or a tunnel with a reset; or the upstream does not keep to WebSocket, where "
        "its messages are read. The app had its status by then, and was cut off, too: so this stands in lines and "
        "metrics only.",
        "look at the upstream, and at what is between it and Overcoat: what is not whole is not made to look so",
    )
    REDIRECT_LOOP = (
        "redirect_loop",
        508,
        "destination_loop_detected",
        "The redirects lead in a circle",
        "The server redirects an upgraded request to the URL that was asked for, or back to it again and again. "
        "Followed, it would never end.",
        "tell the server that it is asked over https (many look at X-Forwarded-Proto), or to not redirect",
    )
    BODY_NOT_JSON = (
        "body_not_json",
        422,
        "http_request_error",
        "The body is not JSON",
        "A body with fields to protect must be one RFC 8259 JSON text in UTF-8 without a byte order mark.",
        "send JSON, or narrow the rule's `when` to the requests that have fields to protect",
    )
    BODY_UNREADABLE = (
        "body_unreadable",
        422,
        "http_request_error",
        "The body can be read in several ways, or in none",
        "A form, a patch or a GraphQL request with fields to protect is malformed, or servers may find other fields in "
        "it than Overcoat does.",
        "send it as its standard has it, in UTF-8: the detail says what is wrong with it",
    )
    GRAPHQL_LITERAL = (
        "graphql_literal",
        422,
        "http_request_error",
        "A marked GraphQL value cannot be sealed where it stands",
        "A value of `graphql_arguments` stands in the query itself, in a variable that no selector marks, or in a URL.",
        "give the argument by a variable that the entry selects ($.variables.NAME), in the body of a POST",
    )
    FIELDS_MISSING = (
        "fields_missing",
        422,
        "http_request_error",
        "No marked field was found",
        "The entry has `required: true`, and nothing that it marks is in the request.",
        "compare the names in the body with the entry's selectors and `form`, or narrow its `when` to the requests "
        "that have such fields",
    )
    BODY_TOO_LARGE = (
        "body_too_large",
        413,
        "http_request_error",
        "The body is too large to protect",
        "A body with fields to protect is held in memory up to `limits.held_body` bytes, decoded.",
        "raise limits.held_body, or narrow the rule's `when`",
    )
    ENCODING_UNSUPPORTED = (
        "encoding_unsupported",
        415,
        "http_request_error",
        "The body's encoding is not supported",
        "A body with fields to protect must be sent in UTF-8, as it is or with `Content-Encoding: gzip`,"
        " `deflate`, `br`, `zstd`, or up to three of these, whole and undamaged.",
        "send the body as it is, or with gzip, deflate, br or zstd",
    )
    SIGNED_BODY = (
        "signed_body",
        422,
        "http_request_error",
        "The body is signed, or covered by a digest",
        "The request carries a signature or a digest over its body, which encrypting fields would break: the server "
        "would refuse it.",
        "make the app send this request unsigned, or set signed: pass on the entry if the server takes it so",
    )
    KEY_UNAVAILABLE = (
        "key_unavailable",
        503,
        "proxy_configuration_error",
        "No key to encrypt with",
        "The rule's encryption key is missing, past its `not_after` date, not good yet (`not_before`), "
        "or could not be fetched yet (`jwks`).",
        "give the key set a new primary key",
    )
    ALREADY_SEALED = (
        "already_sealed",
        422,
        "http_request_error",
        "A field is sealed already",
        "A field that the policy encrypts holds a JWE that was sealed with the same key set for the same place before, "
        "and its entry says `already_sealed: deny`.",
        "see who sealed it before: the app, or another sidecar on the way; already_sealed: keep lets it pass as it is",
    )
    DECRYPTION_FAILED = (
        "decryption_failed",
        502,
        "http_response_incomplete",
        "The response cannot be decrypted",
        "A field that the policy decrypts holds a JWE that none of its keys opens at this place, or the response cannot"
        " be looked at: it is no JSON in UTF-8, in a coding that is not read, damaged, too large, or a part.",
        "see that the sender's key, host and place are those of the policy, or take the field out of decrypt",
    )
    REQUEST_NOT_OPENED = (
        "request_not_opened",
        422,
        "http_request_error",
        "A sealed value of the request does not open",
        "The request came to a mirror listener with a JWE that none of the rule's keys opens at this place, or with a "
        "body in which such a value could not be looked for.",
        "see that the sender seals for the key, host and place of this policy, and sends JSON",
    )
    RESPONSE_NOT_SEALED = (
        "response_not_sealed",
        502,
        "http_response_incomplete",
        "The response cannot be sealed",
        "The server behind a mirror listener has answered with a body in which fields must be sealed and cannot be: it "
        "is no JSON in UTF-8, in an unknown coding, too large, signed, a part, or the key is past its `not_after`.",
        "make the server answer with JSON there, or narrow the entry's `when` to the responses that have such fields",
    )
    INTERNAL_ERROR = (
        "internal_error",
        500,
        "proxy_internal_error",
        "Overcoat failed and kept the request back",
        "Something inside Overcoat raised. What is not understood does not leave.",
        "see Overcoat's log for the place, and report it",
    )

    def __init__(  # noqa: PLR0917  # an enum passes its values by position
        self, code: str, status: int, proxy_error: str, title: str, meaning: str, hint: str
    ) -> None:
        self.code = code
        self.status = status
        self.proxy_error = proxy_error
        self.title = title
        self.meaning = meaning
        self.hint = hint

    @property
    def outcome(self) -> Outcome:
        """How a request ends for this reason."""
        return _OUTCOMES.get(self, Outcome.DENIED)


# Why the work of an entry on marked fields can fail.
FIELD_REASONS = (
    Reason.BODY_NOT_JSON,
    Reason.BODY_UNREADABLE,
    Reason.GRAPHQL_LITERAL,
    Reason.FIELDS_MISSING,
    Reason.BODY_TOO_LARGE,
    Reason.ENCODING_UNSUPPORTED,
    Reason.SIGNED_BODY,
    Reason.ALREADY_SEALED,
    Reason.KEY_UNAVAILABLE,
    Reason.DECRYPTION_FAILED,
    Reason.REQUEST_NOT_OPENED,
    Reason.RESPONSE_NOT_SEALED,
)

_OUTCOMES = {
    Reason.UPSTREAM_UNREACHABLE: Outcome.UPSTREAM_FAILED,
    Reason.UPSTREAM_PROXY_FAILED: Outcome.UPSTREAM_FAILED,
    Reason.UPSTREAM_TIMEOUT: Outcome.UPSTREAM_FAILED,
    Reason.UPSTREAM_FAILED: Outcome.UPSTREAM_FAILED,
    Reason.TLS_FAILED: Outcome.UPSTREAM_FAILED,
    Reason.CLIENT_CERTIFICATE_REFUSED: Outcome.UPSTREAM_FAILED,
    Reason.UPSTREAM_CUT: Outcome.UPSTREAM_CUT,
    Reason.APP_TLS_FAILED: Outcome.APP_LEFT,
    Reason.DRAIN_TIMEOUT: Outcome.DRAINED,
    Reason.POLICY_CHANGED: Outcome.DRAINED,
    Reason.IDLE_TIMEOUT: Outcome.IDLE,
}

# Failures of upstreams. In observe mode plain http stays plain, so a failure there does not tell what enforcing would
# do.
UPSTREAM_FAILURES = frozenset(
    reason for reason, outcome in _OUTCOMES.items() if outcome in (Outcome.UPSTREAM_FAILED, Outcome.UPSTREAM_CUT)
)
