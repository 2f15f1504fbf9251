"""Every time limit that Overcoat sets by itself, in seconds, each with its reason.

Whoever keeps one reads it from here each time (`timelimits.FLUSH_SECONDS`), so a test shortens it in one place. What a
user may set is a key of the policy instead (`limits`, `drain_timeout`, …). This module imports nothing and holds
nothing else: `proxy.health`, which must start fast, reads it too.
"""

_MINUTE = 60.0
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR

# -- a connection from an app, or to an upstream

# For an app that has just connected to send its request, before it is taken for idle when all is to end.
FRESH_SECONDS = 1.0
# For something to move where one end has ended its side: it may be gone altogether, and TCP doesn't tell that apart.
HALF_CLOSED_SECONDS = 30.0
# Between looks at an app that nothing is read from: its end would go unnoticed.
HELD_CHECK_SECONDS = 10.0
# Between looks at a half-closed way through a proxy: whoever used it may be gone.
TUNNEL_CHECK_SECONDS = 1.0
# For an app to read an answer that came before it had sent everything: a reset could take the answer from it.
LINGER_SECONDS = 1.0
# For an app that speaks HTTP/2 to hear that it should begin no other stream, before it is told which are still served.
LEAVE_SECONDS = 1.0
# For a closed connection to take what is still in its buffer: the other end may never read on.
FLUSH_SECONDS = 30.0
# Between two log messages that say that descriptors are short: the shortage meets each connection that waits.
SHORTAGE_LOG_SECONDS = 10.0

# -- upstreams

# Before the next address of a host is tried beside one that has not answered yet (RFC 8305, section 5).
NEXT_ADDRESS_SECONDS = 0.25
# For an upstream to complete TLS: it takes a few round trips, and whoever asked waits.
HANDSHAKE_SECONDS = 10.0
# Without a byte on a connection of HTTP/2, before a request that is given up there says something about all others.
SILENT_SECONDS = 5.0
# For a connection to idle in the pool: less than common servers wait before they close it.
POOL_IDLE_SECONDS = 60.0
# For a connection to be used again: then its certificate and pins are looked at anew.
POOL_AGE_SECONDS = 10 * _MINUTE

# -- the admin address, and who asks it

# For who asks the admin address to send its request and to take the answer: there are few threads for it.
ADMIN_SOCKET_SECONDS = 10.0
# Between looks whether the admin address is to close: it may have to wait for so long.
ADMIN_CHECK_SECONDS = 0.1
# For `overcoat healthcheck` to get its answer: on a tenth of a processor that takes a while.
READY_SECONDS = 5.0
# The least time that a read of the health check is given: none at all would mean that it must not wait.
LEAST_READ_SECONDS = 0.01

# -- decision lines

# For what still waits to be written at the end: a reader that takes nothing must not hold the end up.
LAST_LINES_SECONDS = 2.0
# For lines to gather before they are written: one write for many costs less.
GATHER_SECONDS = 0.005
# Between two log messages that lines were lost: a slow reader loses some and takes some, in turns.
LOST_LINES_LOG_SECONDS = _MINUTE

# -- parent and workers

# A child that lived shorter than this is replaced only after a pause of the same length: it would fail again at once.
QUICK_END_SECONDS = 1.0
# For a child to take a policy over: one that does not is replaced.
TAKE_POLICY_SECONDS = 10.0
# For a worker to end, beyond the time that it gives itself to drain: then it is killed.
DRAIN_SPARE_SECONDS = 4.0
# For the other process to take, or to send, the rest of a message that it has begun.
WIRE_SECONDS = 5.0

# -- what ends, and who is told

# What ends within this is said: in `check`, in the log, on the status page. Pins and keys take days to replace.
SOON_SECONDS = 30 * _DAY
# Before what was said of an end is said again: once a day is seen, and fills no log.
REMIND_SECONDS = _DAY
# Between looks whether there is something to say; so much later than its time may it come.
REMIND_CHECK_SECONDS = _HOUR

# -- certificates of the local CA, and of the demo

# The CA's own life: apps have to be told of each new one.
CA_SECONDS = 5 * 365 * _DAY
# The life of a certificate that it signs: it is made anew whenever it is needed.
LEAF_SECONDS = 7 * _DAY
# What must be left of such a life, or another is made: a connection may last for long.
LEAF_RENEW_SECONDS = _DAY
# Apps in containers and virtual machines may have clocks a little behind: certificates begin so much earlier.
CLOCK_SLACK_SECONDS = _DAY
# The life of the demo's own certificates: nobody watches it for longer.
DEMO_CERTIFICATE_SECONDS = 12 * _HOUR

# -- the demo

# For its sidecar to start, to answer, and to end.
DEMO_SECONDS = 20.0
# For its servers to get a request, and to be read from.
DEMO_SOCKET_SECONDS = 10.0

# -- the core, which is told the time by its callers

# For one agreed key to seal values with: agreeing takes several times as long as sealing, and none should last.
SEALER_SECONDS = 1.0
# For a client that has guessed a password wrong to be tried less often.
SUSPECT_SECONDS = _MINUTE
# The longest that a host is known to want https (RFC 6797): what a server says may be any number.
HSTS_SECONDS = 2 * 365 * 86_400
