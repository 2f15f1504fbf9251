"""The pipeline inside stock mitmproxy: what our engine does, made of mitmproxy's own hooks (docs/mitmproxy.md)."""
