"""The demo: real upstreams, the sidecar as its own process, an unmodified client, and a verdict."""
