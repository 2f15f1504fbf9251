"""The model of the policy file: its keys, their types and defaults, and what they mean. `proxy.policyfile.load`
validates files with it, and `proxy.policyfile.build` reads what came of that. There is a module for each part of
the file: `whole` has its top, `values` the parsers of single values, and `schema` is what is generated from all of it.

Rules of this room:

- It is strict: an unknown key, a wrong type and an unknown value are errors; nothing is converted silently.
- Every key has an effect. A key that would do nothing is refused.
- A check of one value is here; a check of several is in `proxy.policyfile.build`.
- The description of a key is its reference: the schema and the table in docs/policy.md are made of it.

Offers:

- `access`: ClientsSection; who may use the proxy
- `addresses`: ascii_host, parse_admin, parse_listener; hosts and listeners, as the file writes them
- `fields`: DecryptEntry, EncryptEntry, WhenSection; marked fields
- `keys`: KeyEntry, KeySetSection; key sets
- `limits`: LimitsSection, RuleLimitsSection; how much may be taken
- `rules`: RuleSection; what holds for some hosts
- `schema`: schema_text; the JSON Schema
- `section`: Section; any mapping of the file
- `selectortext`: BadEntry; what is wrong with a selector
- `trust`: ClientCertificateSection, CrlsSection, PinsSection, RuleTrustSection, SYSTEM_ROOTS, TrustSection;
  which servers are believed
- `values`: KeySource, PinFile; where a value comes from
- `whole`: MARKERS, PolicyFile, UpstreamProxySection; the file
"""
