"""What speaks with apps: a socket, HTTP of either version on it, CONNECT, tunnels, a conversation for each request."""
