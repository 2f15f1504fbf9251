-- Makes wrk speak to a forward proxy, and print what it counted as one line of JSON.
-- Arguments: METHOD TARGET HOST keep|close [BODY-FILE]; TARGET stands in the request line as it is.
-- Everything is set in init, so that wrk builds the request once and runs no Lua per request.

function init(args)
  wrk.method = args[1]
  wrk.path = args[2]
  wrk.headers["Host"] = args[3]
  if args[4] == "close" then
    wrk.headers["Connection"] = "close"
  end
  if args[5] then
    local file = assert(io.open(args[5], "rb"))
    wrk.body = file:read("*a")
    file:close()
    wrk.headers["Content-Type"] = "application/json"
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, ' ..
    '"errors": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
