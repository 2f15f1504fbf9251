"""What speaks with servers: the route to them, the handshake, HTTP of either version, and the pool.

Theory of operation. `opening` gives a request the way to its server: a connection of its own, or a stream of one that
is shared. Under it, `route` goes straight (`dialling`) or through another proxy, and `handshake` makes of a connected
socket a `connection`, or fails. What has served its request goes back to the `pool`, where the next one finds it.
What all of this needs of the process is one value, `services.Services`, which `server` hands in: nothing here knows
the engine, or anything of `apps`.

Offers:

- `connection`: ONLY_HTTP2, NoResponses, UpstreamConnection; one connection, as those see it who have one of their own
- `dialling`: connect; a TCP connection to an address that may be reached
- `handshake`: secure; a TLS handshake with a server
- `opening`: open_stream; the way to a server for one request
- `pool`: Pool; the connections that are there already
- `route`: dial, reach; a connection to a server, or a socket to it, straight or through another proxy
- `services`: Services; what upstream connections need of the process
"""
