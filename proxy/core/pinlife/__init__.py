"""What the owner of pins wants to know before and after a handshake: whether a backup is there, what ends when, what
had better not be pinned, and what the pins of other programs come to here. `overcoat pins` calls it, and `overcoat
check` for backups.

Offers:

- `advice`: advice_on; what had better not be pinned
- `candidates`: Candidate, read_candidate; a chain or a request for a certificate that is to come
- `checks`: HostCheck, Result, backups, check_host, days_until, failed_host, troubles; a host's pins, and what ends soon
"""
