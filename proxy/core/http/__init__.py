"""HTTP messages: reading and checking heads, where bodies end, and header fields with a meaning for a proxy. The engine
calls it for each message of HTTP/1 and HTTP/2, and the addons for the fields that they look at. All of it works on
bytes and tuples of fields, never on a socket.

Offers:

- `allowances`: Allowance; how often a peer may do what costs it nothing
- `cookies`: Cookies, Delivery, names_sent; which cookies of a server the app keeps
- `digests`: BadDigest, first_digest, followed, is_digest, recomputed, without_digests; fields that hold a digest of a
  body
- `framing`: MAX_TRAILERS, BadFraming, Body, UntilCloseBody, body_of, chunk, last_chunk; where a body of HTTP/1 ends
- `heads`: CHUNKED, KEPT, MAX_HEAD_BYTES, UNTIL_CLOSE, Fields, HeadEnd, RequestHead, ResponseHead, can_become_a_head,
  names_in, read_request_head, read_response_head; heads of HTTP/1
- `heads2`: read_http2_request, read_http2_response, read_http2_trailers; heads of HTTP/2
- `hops`: has_come_through, is_last_request, keeps_alive, one_forward_less, trailers_to_relay, without_framing,
  without_hop; fields about one connection only
- `names`: check_host_fields, check_hosts_in, check_path, check_server_name, host_field, is_own_name, mirrored_host,
  read_host_field, read_target, with_host; whether Host, SNI and destination agree
- `permessage`: BadAnswer, Inflater, Parameters, TooLarge, agreed, deflater, offers; compression of WebSocket messages
- `problems`: JSON_TYPE, PAGE_TYPE, grpc_fields, is_grpc, problem_details, problem_page, proxy_status, wants_page; what
  an app is told about a denial
- `redirects`: Trail; redirects that lead in a circle
- `traces`: trace_id; the app's own id for a request
- `websocket`: BINARY, CLOSE, INTERNAL_ERROR, POLICY_VIOLATION, TEXT, TOO_BIG, BadFrame, Control, Frames, Message,
  Messages, Part, Passing, Writer, close_payload; frames and messages of WebSocket
"""
