"""The core: it decides, and never acts. Pure functions and frozen dataclasses, which everything else calls. Nothing in
the core reads a file or a socket, asks for the time or imports mitmproxy; who calls it passes everything in. So all of
it can be tested with plain values. Directly in this folder is what several folders need: what a destination is, which
decisions there are, and certificate pins.

Offers:

- `decisions`: Action, Decision, Denied, late_response; what happens to a request
- `reasons`: FIELD_REASONS, UPSTREAM_FAILURES, Outcome, Reason; why it is denied, and how it ends
- `destinations`: CACHED, HTTPS_PORT, HTTP_PORT, BadDestination, Destination, canonical_host, is_address, is_local,
  is_local_name, parse_authority; host and port in one spelling
- `clienthello`: ClientHello, read_client_hello; what an app says at the start of TLS
- `handshakes`: GROUPS, HYBRID, Handshake, alert_of, ended_after, group_of, handshake_failed, why_app_failed; why a
  TLS handshake failed, in words, and which key exchanges there are
- `pinfiles`: pin_of_pem; the pin of a certificate or key in a file
- `pins`: AfterExpiry, Level, Pin, PinCheck, PinMatch, PinSet, PinVerdict, certificate_pin, check_pins, level_of,
  matching_pins, mismatch_facts, parse_pin, pin_of_public_key_info, spki_pin; whether a server's certificates match what
  the policy expects
"""
