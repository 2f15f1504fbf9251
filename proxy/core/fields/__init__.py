"""Marked fields: which values of a body a rule wants encrypted or decrypted, where they are, and how they are replaced.
The addon `addons.encryption` calls it for each request and response that has such a rule. A body goes through in four
steps: `readings` says whether a rule's entry applies, `encodings` takes the content encoding off, `jsontext` finds the
values that the `selectors` mean, in texts inside strings, too, and `splice` puts other values in their place. Every
other byte stays as it came.

Offers:

- `automaton`: MAX_INSIDE, Marks; what an entry marks
- `bodies`: MAX_SEALED, BodyHead, acceptable, change, check_before, check_signature, count_marked, covered_by,
  followed_digests, passes, too_large, unchangeable, with_digests; one body, from start to end
- `encodings`: beginning, decode, parse_encoding; content encodings such as gzip
- `entries`: AlreadySealed, Digests, FieldEntry, Match, OnFailure, OtherBodies, PathGlob, Signed, When, Work; one entry
  of a rule's `request` or `response` list
- `envelopes`: Envelope; the object in which a sealed value stands
- `graphqlrequests`: check_target; the GraphQL that a URL holds
- `jsontext`: NotJson, Span, find_spans; where values stand in JSON text
- `kinds`: splice_body; bodies of every kind: JSON, lines, forms, patches, GraphQL
- `messages`: Plan, change, count_marked, too_large; one WebSocket message
- `pauses`: SHORT, Pause, never; where long work on a body may be interrupted
- `readings`: Readings, may_be_any_method, may_name_method, readings, with_body; all methods and paths that a server may
  read in a request
- `responses`: Label, asked, comes_in_texts, label_of, told; which responses may hold fields, and their header fields
  afterwards
- `selectors`: BadSelector, Selector, parse_selector; JSONPath selectors
- `shapes`: MOST_BYTES, MOST_PATH, Shape, shapes; where a body has values that look like secrets
- `signatures`: covering; whether a request's body is signed
- `splice`: Job, splice, token_of; replacing values without touching other bytes
- `streams`: Stream; a body of several JSON texts, changed while it comes
- `uploads`: MOST_LOOKED_AT, Upload, may_stream, passes; bodies that need not be held
- `values`: Setting, kid_fields, sealing_key, told_kids; what happens to one value
"""
