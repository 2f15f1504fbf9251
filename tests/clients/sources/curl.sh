# Each program asks the same four, in this order, and says for each what came: the status, or what went wrong.
ask() {
  name=$1
  shift
  printf '%s %s\n' "$name" "$(curl -s -o /dev/null -w '%{http_code}' "$@")"
}
ask upgraded --json '{"card": "4111111111111111", "name": "x"}' "$UPGRADED"
ask inspected "$INSPECTED"
ask tunnelled "$TUNNELLED"
ask refused "$REFUSED"
