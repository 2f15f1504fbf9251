"""One mitmproxy addon a protection, in pipeline order: gate, transport, pinning, encryption, telemetry."""
