"""What speaks with servers: the route to them, the handshake, HTTP/1 and HTTP/2, and the pool. The conversations and
tunnels of `apps` call it, and `probe`.

Theory of operation. A conversation first asks the `pool` for a connection that was opened for the same destination,
rule and policy. If there is none, `opening` makes one: `route` connects, directly (`dialling`) or through another
proxy, and `handshake` does TLS, in which the pins are checked. The result is a `connection`, which carries one request
of HTTP/1 at a time; if the server has chosen HTTP/2, `http2` carries many streams on it. After a complete response it
goes back to the pool. Each connection has one state; the tables in `state` say what may happen in each.

Everything here uses its process through one value, `services.Services`, which `server` makes. Nothing here knows the
engine, or `apps`.

Offers:

- `asking`: ask_server; a question of Overcoat's own
- `asides`: Asides; handshakes beside what is observed
- `connection`: ONLY_HTTP2, UpstreamConnection; one connection to a server
- `dialling`: connect; a TCP connection to an address that may be reached
- `handshake`: secure; a TLS handshake with a server
- `opening`: open_stream; a stream to a server for one request
- `pool`: Pool; the connections that may be used again
- `route`: dial, reach; connects to a server, directly or through another proxy
- `services`: Services; what upstream connections need from their process
- `supplies`: Supplies, SupplyFailed, fetch_keys; keys that are fetched by URL
"""
