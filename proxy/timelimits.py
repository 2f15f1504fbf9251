"""Every time limit that Overcoat sets itself, in seconds, each with its reason. All other modules read them from here
each time they need one (`timelimits.FLUSH_SECONDS`), so a test can shorten one in a single place.

Time limits that users can set are keys of the policy (`limits`, `drain_timeout`, …). This module imports nothing and
has nothing else in it, since `proxy.health`, which must start fast, reads it, too.
"""

_MINUTE = 60.0
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR

# -- a connection from an app, or to an upstream

# For an app that has just connected to send its request, before it counts as idle when connections are drained.
FRESH_SECONDS = 1.0
# For bytes to move after one end has ended its side: it may be gone completely, which TCP does not tell.
HALF_CLOSED_SECONDS = 30.0
# Between checks of an app from which nothing is read: else nobody would notice its end.
HELD_CHECK_SECONDS = 10.0
# Between checks of a half-closed tunnel through a proxy: its user may be gone.
TUNNEL_CHECK_SECONDS = 1.0
# For an app to read an answer that was sent before the app had sent everything: a reset could destroy the answer.
LINGER_SECONDS = 1.0
# For an app of HTTP/2 to learn that it should begin no new stream, before it is told which streams are served.
LEAVE_SECONDS = 1.0
# For the rest of the buffer to be sent after a close: the other end may never read it.
FLUSH_SECONDS = 30.0
# Before it is tried again to accept connections, after a shortage of descriptors.
ACCEPT_AGAIN_SECONDS = 1.0
# Between two log messages about a shortage of descriptors: it affects each connection that waits.
SHORTAGE_LOG_SECONDS = 10.0

# -- upstreams

# Before the next address of a host is tried, while one has not answered yet (RFC 8305, section 5).
NEXT_ADDRESS_SECONDS = 0.25
# For an upstream to complete TLS: this takes a few round trips, and the app waits.
HANDSHAKE_SECONDS = 10.0
# Of silence on a connection of HTTP/2: if a request is then given up, the connection may be dead.
SILENT_SECONDS = 5.0
# For a connection to be idle in the pool: less than common servers wait before they close it.
POOL_IDLE_SECONDS = 60.0
# For a connection to be reused: a new one checks certificate and pins again.
POOL_AGE_SECONDS = 10 * _MINUTE

# -- the admin listener, and its clients

# For a client of the admin listener to send its request and to read the answer: there are few threads.
ADMIN_SOCKET_SECONDS = 10.0
# Between checks whether the admin listener is to close: closing may take so long.
ADMIN_CHECK_SECONDS = 0.1
# For `overcoat healthcheck` to get its answer: with a tenth of a processor it is slow.
READY_SECONDS = 5.0
# The shortest time limit for a read of the health check: 0 would mean not to wait at all.
LEAST_READ_SECONDS = 0.01

# -- the status page

# For what it shows to be shown again without working it out: several may look at it, and reload it quickly.
STATUS_SECONDS = 1.0
# The rates are those of so long a time, or of what there is.
RATE_SECONDS = _MINUTE
# Below that a rate says little: then the one since the start is shown.
LEAST_RATE_SECONDS = 4.0

# -- long work on bodies

# For one piece of it, in one turn of the event loop, for which all others wait; shorter ones cost changes of threads.
PIECE_SECONDS = 0.005

# -- decision lines

# For the lines that wait at the end: a reader that takes nothing must not delay the end.
LAST_LINES_SECONDS = 2.0
# For lines to gather: each write interrupts the requests. At 5 ms it took a twelfth of a busy machine's processor time.
GATHER_SECONDS = 0.02
# Between two log messages about lost lines: with a slow reader, losing and writing alternate.
LOST_LINES_LOG_SECONDS = _MINUTE

# -- observe mode

# Between two handshakes of its own with the same pinned server: its key rarely changes, and it should not notice much.
ASIDE_SECONDS = 5 * _MINUTE

# -- what Overcoat itself asks a server

# For a server to give the whole answer: somebody waits in front of the screen, or for keys.
QUESTION_SECONDS = 10.0
# For the keys of a URL to come before the listeners open: without them requests would be denied.
FIRST_KEYS_SECONDS = 5.0
# Between attempts to fetch keys for a key that is asked for and is not there: apps can cause that.
KEYS_AGAIN_SECONDS = 30.0
# The longest pause between attempts to fetch keys that fail: a server that is back is soon found.
MOST_KEYS_BACKOFF_SECONDS = _MINUTE
# Between two log messages about keys that cannot be fetched.
KEYS_LOG_SECONDS = _HOUR

# -- parent and workers

# A child that ends sooner is replaced after a pause of this length: it would probably fail again at once.
QUICK_END_SECONDS = 1.0
# For a child to take a policy over: one that does not is replaced.
TAKE_POLICY_SECONDS = 10.0
# Added to the time limit for draining of a worker itself; then the worker is killed.
DRAIN_SPARE_SECONDS = 4.0
# For the other process to take or send the rest of a message that has begun.
WIRE_SECONDS = 5.0

# -- sidecars that share a data directory

# For one that starts at the same moment to let go of the lock.
SHARE_SECONDS = 2.0
# Between two looks at whether it has.
SHARE_LOOK_SECONDS = 0.02

# -- files of the policy that change while a sidecar runs

# Between two looks at them. A change counts once two looks find the same: then a file is not being written any more.
LOOK_SECONDS = 0.5
# For files to come to rest: one that is written without end must not keep another from being read.
UNRESTING_SECONDS = 30.0
# For another process to read the policy: thousands of rules take a minute with a tenth of a processor.
READ_POLICY_SECONDS = 2 * _MINUTE
# Before changed files are read again, after no process was to be had, or it was killed: memory may be short.
READ_AGAIN_SECONDS = 10.0

# -- what is under way

# Between two looks at it: metrics of what runs are as old as that, and Prometheus asks every 15 seconds.
UNDER_WAY_SECONDS = 2.0
# For what is open under an earlier policy to end by itself; the next look ends it, so it is gone within 10 seconds.
OUTLIVED_SECONDS = 6.0
# Between two lines about a tunnel that is open: enough to see that it lives, and few.
LINE_SECONDS = 5 * _MINUTE

# -- warnings of ends

# Before an end, `check` and the log warn for so long: pins and keys take days to replace.
SOON_SECONDS = 30 * _DAY
# Before a warning is repeated: once a day is seen, and does not fill the log.
REMIND_SECONDS = _DAY
# Between checks for new warnings: one may come so much too late.
REMIND_CHECK_SECONDS = _HOUR

# -- certificates of the local CA, and of the demo

# The lifetime of the CA: apps must be told of each new one.
CA_SECONDS = 5 * 365 * _DAY
# The lifetime of a certificate that it signs: a new one is made whenever it is needed.
LEAF_SECONDS = 7 * _DAY
# What must be left of that lifetime, or a new one is made: a connection may last long.
LEAF_RENEW_SECONDS = _DAY
# The clocks of apps in containers and virtual machines may be slow: certificates begin so much earlier.
CLOCK_SLACK_SECONDS = _DAY
# The lifetime of the demo's own certificates: nobody watches it for longer.
DEMO_CERTIFICATE_SECONDS = 12 * _HOUR

# -- the program that `overcoat run` runs

# Between checks whether it is given up before its sidecar is ready: Ctrl-C should be felt at once.
GIVE_UP_CHECK_SECONDS = 0.05
# Between looks at its connections: most last longer.
SIGHT_SECONDS = 0.05
# For a program that has stopped to go on again: after Ctrl-Z and `fg` the message of the stop may be an old one.
STOPPED_SECONDS = 0.05

# -- the demo

# For its sidecar to start, to answer, and to end.
DEMO_SECONDS = 20.0
# For its servers to get a request, and for their answer to be read.
DEMO_SOCKET_SECONDS = 10.0

# -- the core, whose callers tell it the time

# For what sealing keeps between bodies to lie unused: it takes a while to make, but should not outlast its policy.
SEALER_SECONDS = 1.0
# During which a client that has sent a wrong password may try less often.
SUSPECT_SECONDS = _MINUTE
# The longest time for which a host is remembered to want https (RFC 6797): servers may send any number.
HSTS_SECONDS = 2 * 365 * 86_400
