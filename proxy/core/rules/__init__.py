"""The policy as it is in force, and what it decides about a request without looking into the body. `proxy.policyfile`
builds the `Policy`; the addons ask for a decision on each request; the engine asks which addresses may be dialled.

Offers:

- `appview`: OF_REQUESTS, OF_RESPONSES, View, interim_fields, renamed, request_fields, response_fields, upgraded; what
  an app that was upgraded to https must not notice
- `ends`: NO_REASON, NO_STATUS, End, ends, status_class; how requests can end, as labels
- `hsts`: KnownHosts; hosts that have asked for https only (RFC 6797)
- `inspected`: NotFixed, constraints_for, outside; which hosts are inspected, and whether the local CA may sign for them
- `policy`: Defaults, Egress, HostPattern, Https, Limits, Listener,
  ListenerKind, Mirror, Mode, OpenConnections, PlainHttp, Policy, Rule, RuleLimits, UpstreamProxy, upgraded; the
  policy and its parts
- `promises`: has_outlived, pins_have_ended; whether what is open under an earlier policy may go on
- `transport`: decide_https, decide_mirror, decide_plain_http, denied_by_address, forbidden_address,
  forbidden_behind_mirror, hint_for_neighbour, own_listener, unresolved, untaken; upgrade, reject or allow; which
  addresses may be reached
- `trust`: ClientCertificate, CrlUse, Crls, KeyExchange, Trust; which certificates are trusted, and which one is shown
- `unpinned`: ended, unpinned; what is said of a server that the pins do not vouch for
"""
