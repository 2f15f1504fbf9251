ask() {
  name=$1
  shift
  # Of a server's headers the last status line counts: the first may be the proxy's answer to CONNECT.
  printf '%s %s\n' "$name" "$(wget -q -S -O /dev/null --tries=1 "$@" 2>&1 | sed -n 's|^ *HTTP/[0-9.]* \([0-9]*\).*|\1|p' | tail -n 1)"
}
ask upgraded --header='Content-Type: application/json' --post-data='{"card": "4111111111111111", "name": "x"}' "$UPGRADED"
ask inspected "$INSPECTED"
ask tunnelled "$TUNNELLED"
ask refused "$REFUSED"
