"""What speaks with servers: the way to them, the handshake, HTTP of either version, and the pool."""
