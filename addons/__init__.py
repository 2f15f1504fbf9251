"""The protections, one mitmproxy addon a file. In the order in which they see a request: gate, transport, pinning,
encryption, telemetry. The engine calls their hooks (`proxy.engine.dispatch`); so does stock mitmproxy (`addons.stock`).
An addon reads what it needs from the flow, asks the core for a decision, and writes that into the flow. `exchange`,
`sessions` and `upstream` hold what addons and engine know of one request, of one client connection, and of one
connection to a server.

Offers:

- `bodyheads`: takes_long; whether it may take long to work on a body
- `denials`: problem_response; how a denied request is answered
- `encryption`: Encryption; encrypts fields of requests, decrypts those of responses
- `expected`: expect, rule_by_rule; each series before its first event
- `exchange`: Exchange; what is known of one request
- `gate`: Gate; lets in who may ask for what, and finds the destination
- `headers`: has_field, values_of; header fields by name
- `inforce`: InForce; the metrics without gauges of what a reload took away
- `localca`: LocalCaGuard; no certificate that the local CA may not sign
- `messages`: Messages; encrypts and decrypts fields of WebSocket messages
- `metrics`: NO_RULE, Metrics; what is counted
- `outcomes`: done, is_denied; what became of one request
- `pinning`: Pinning, expired_pins, have_expired; pins, in the handshake
- `policymetrics`: PolicyMetrics; what is read from the policy at each scrape
- `sessions`: Session, Sessions; what is known of one client connection
- `telemetry`: Telemetry; one decision line for each request
- `transport`: Transport; upgrades plain http
- `upstream`: Upstream; what is known of one connection to a server
"""
