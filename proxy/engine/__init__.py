"""Sockets, TLS, HTTP/1 and HTTP/2: what speaks with apps and with servers, and calls the hooks."""
