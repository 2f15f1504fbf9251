"""The demo: it starts servers and a sidecar on this machine, sends requests through them, and checks what arrived.
`overcoat demo` calls it.

Offers:

- `cases`: Case, run_cases; the cases, and what came of each
- `sidecar`: DemoFailed, client_name; the sidecar as its own process, and the client that is used
"""
