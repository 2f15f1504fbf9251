"""The engine: sockets, TLS, HTTP/1 and HTTP/2. It speaks with apps and with servers, and calls the addons' hooks.
`proxy.processes` and `overcoat serve` start it (`server.Engine`). `apps` holds what speaks with apps, `upstreams` what
speaks with servers; directly in this folder is what both use.

Offers:

- `clock`: ResponseClock; time limits of a response
- `descriptors`: KEPT_FROM_DIALS, SHORTAGES, is_taken, raise_limit, shortage, warn_of_limit; the limit of open sockets
- `dispatch`: Dispatcher, HookFailed; calls the addons' hooks; a hook has raised
- `flows`: new_client, new_flow, new_server; mitmproxy's objects, made at low cost
- `http2`: PREFACE, TOO_MANY_RESETS, Connection, Stream, name_of; what both sides of HTTP/2 do alike
- `http2state`: KEPT_LIST, MAX_STREAMS, NeverIndexed, size_of; h2's connection state, with stricter checks
- `messages`: Entry, aimed, authenticates_connection, frame, request_head, request_of, response_head, response_of; heads
  of the core to mitmproxy's messages and back
- `probe`: probe; which certificates a server shows, for `overcoat pins fetch`
- `server`: BindError, Bound, Engine, bind; the engine, and the sockets it listens on
- `sockets`: RESET, Reading, tcp_socket; reads a socket into one buffer, makes one, breaks one off
- `streams`: Receiver, UpstreamStream, Version; where one request goes, and who takes its response
- `tls`: NoRoots, TlsConnections, with_roots; TLS contexts and connections
- `tlsstream`: TlsStream; TLS over a socket of the event loop
- `transitions`: table; the states of a thing with a life of its own, and what leads from one to the next
"""
