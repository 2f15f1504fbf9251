"""What speaks with apps: a socket, HTTP of either version on it, CONNECT, tunnels, a conversation for each request.

Theory of operation. `server` makes an `AppSocket` for each connection that it accepts. The socket gives all bytes to
its one speaker (`speaker.Speaker`): the first one is chosen in `entries`, by the listener; CONNECT, TLS, HTTP/2, a
tunnel or a WebSocket put others in its place. HTTP/1 and HTTP/2 make a `Conversation` of each request. It calls the
addons' hooks, sends the request on an upstream's stream, and answers on an `AppStream`, which hides the version from
it. What all of this needs of the process is a `House`, which the engine is.

Offers:

- `entries`: meet; lets an app that has just connected speak, or refuses it
- `house`: OpenConnection; a connection, as far as the engine ends it
- `socket`: AppSocket; one connection of an app
"""
