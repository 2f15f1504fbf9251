"""The engine: sockets, TLS, HTTP/1 and HTTP/2. It accepts connections of apps, calls the addons' hooks for each
request, and speaks with servers. `overcoat serve` and the worker processes make one `server.Engine` each. `apps` holds
what speaks with apps, `upstreams` what speaks with servers; directly in this folder is what both use.

Theory of operation. There is one asyncio loop, in one thread, and no lock. When bytes come from a socket, everything
that they cause happens in one synchronous turn of the loop, always in the same order: the app's speaker reads them, a
conversation calls the hooks as plain functions, and what is to be sent is gathered, and written once at the end of the
turn. Only opening a connection to an upstream is a task, since it waits. So a hook that takes long holds up all
connections. One that may, since it works on a long body, is done piece by piece by `turns`; meanwhile its direction of
the conversation waits (`apps.lanes`).

If one side is slow, nothing more is read from the other. If a step raises, the connection that it belongs to is closed,
with everything that was opened for it; if a hook raises, `dispatch` denies the flow.

Offers:

- `candidates`: NotTrusted, verified_chain; would a chain pass that no server shows yet?
- `clock`: ResponseClock; the time limit for a response
- `descriptors`: KEPT_FROM_DIALS, SHORTAGES, is_taken, raise_limit, shortage, warn_of_limit; the limit of open sockets
- `dispatch`: Dispatcher, HookFailed; calls the addons' hooks, and fails closed
- `flows`: new_client, new_context, new_flow, new_request, new_server; makes mitmproxy's objects at low cost
- `hookdata`: Context, TlsData; what the hooks about TLS get
- `http2`: PREFACE, TOO_MANY_RESETS, Connection, Stream, name_of; what both sides of HTTP/2 do alike
- `http2state`: KEPT_LIST, MAX_STREAMS, NeverIndexed, size_of; h2's connection state, with stricter checks
- `life`: Life; an open socket: pauses, time limits, and its ends
- `messages`: ListenerTarget, aimed, authenticates_connection, frame, headers_of, request_head, request_of,
  response_head, response_of; heads of the core to mitmproxy's messages and back
- `probe`: Answered, Prober, Shown, ask, fetch, probe; which certificates a server shows, what it answers, and which
  keys it has, for commands
- `roots`: NoRoots, read_roots, with_roots; what upstreams are verified with
- `server`: BindError, Bound, Engine, bind; the engine, and the sockets it listens on
- `sockets`: Reading, tcp_socket; makes sockets, and reads from them
- `streams`: NoResponses, Receiver, UpstreamStream, Version; the interface between a conversation and an upstream
- `timers`: Timers; time limits of many connections
- `tls`: TlsConnections; TLS contexts and connections
- `tlsstream`: TlsStream, reasons; TLS over a socket of the event loop
- `transport`: SocketTransport; a connected socket in the event loop
- `vitals`: measure; memory, descriptors and processor time of a process
- `turns`: Turns, Work; long work on bodies, piece by piece
- `transitions`: table; the states of a thing with a life of its own, and what leads from one to the next
"""
