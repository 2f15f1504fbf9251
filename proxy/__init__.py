"""Overcoat itself: the command `overcoat`, and a folder for each part of it. The launcher in `overcoat/` and stock
mitmproxy (`config/mitmproxy_addon.py`) start here. What each folder is for stands in ARCHITECTURE.md, under "The
house".

Offers:

- `cli`: main; the command, for the launcher
- `health`: NotReady, Sign, address_text, check, data_folder, listeners, main; whether a running sidecar is ready
- `log`: describe, say_all_in_one_form; how messages and errors are written to stderr
- `timelimits`: ACCEPT_AGAIN_SECONDS, ADMIN_CHECK_SECONDS, ADMIN_SOCKET_SECONDS, CA_SECONDS, CLOCK_SLACK_SECONDS,
  DEMO_CERTIFICATE_SECONDS, DEMO_SECONDS, DEMO_SOCKET_SECONDS, DRAIN_SPARE_SECONDS, FLUSH_SECONDS, FRESH_SECONDS,
  GATHER_SECONDS, GIVE_UP_CHECK_SECONDS, HALF_CLOSED_SECONDS, HANDSHAKE_SECONDS, HELD_CHECK_SECONDS, HSTS_SECONDS,
  LAST_LINES_SECONDS, LEAF_RENEW_SECONDS, LEAF_SECONDS, LEAVE_SECONDS, LINE_SECONDS, LINGER_SECONDS, LOOK_SECONDS,
  LOST_LINES_LOG_SECONDS, NEXT_ADDRESS_SECONDS, POOL_AGE_SECONDS, POOL_IDLE_SECONDS, QUESTION_SECONDS,
  QUICK_END_SECONDS, READY_SECONDS, REMIND_CHECK_SECONDS, REMIND_SECONDS, SEALER_SECONDS, SHORTAGE_LOG_SECONDS,
  SIGHT_SECONDS, SILENT_SECONDS, SOON_SECONDS, STOPPED_SECONDS, SUSPECT_SECONDS, TAKE_POLICY_SECONDS,
  TUNNEL_CHECK_SECONDS, UNDER_WAY_SECONDS, UNRESTING_SECONDS, WIRE_SECONDS; every time limit that no policy sets
"""
