"""What speaks with servers: the way to them, the handshake, HTTP of either version, and the pool.

Offers:

- `connection`: secure; a TLS handshake with a server
- `dialling`: connect; a TCP connection to an address that may be reached
"""
