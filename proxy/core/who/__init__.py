"""Who is asking: network addresses, the clients that a policy lets in, and their passwords. `addons.admission`
calls it for each connection and request; `proxy.policyfile` reads addresses and users with it.

Offers:

- `addresses`: Address, AddressKind, AddressSet, Network, address_set, kind_of, network_of, parse_addresses, parse_ip;
  IP addresses, networks, and kinds of address such as private or loopback
- `clients`: ClientRules, PasswordHash, User, check_client, hash_password, may_ask, parse_password_hash,
  parse_user_name; which clients may use the proxy
- `credentials`: Verifier, read_basic; checks a password, and slows down guessing
"""
