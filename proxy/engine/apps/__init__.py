"""What speaks with apps: their sockets, HTTP/1, HTTP/2, CONNECT, tunnels, and a conversation for each request. `server`
makes an `AppSocket` for each connection that it accepts.

Theory of operation. The socket gives all received bytes to its speaker (`speaker.Speaker`). `listeners` sets the first
one, by the kind of the listener; CONNECT, TLS, HTTP/2, a tunnel or a WebSocket replace it with another. The speakers
for HTTP/1 and HTTP/2 make a `Conversation` of each request. It calls the addons' hooks, sends the request on an
upstream's stream, and answers on an `AppStream`, so it need not know which version of HTTP either side speaks. A socket
and a conversation each have one state; the tables in `states` say what may happen in each.

Everything here uses its process through one interface, `house.House`, which the engine implements.

Offers:

- `listeners`: meet; gives an app that has just connected its first speaker
- `house`: OpenConnection; a connection, as far as the engine ends it
- `socket`: AppSocket; one connection of an app
"""
