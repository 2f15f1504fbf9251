ask() {
  if said=$(git clone -q "$2/demo.git" "$1" 2>&1) && test "$(cat "$1/hello")" = hello; then
    echo "$1 200"
  else
    echo "$1 $(printf %s "$said" | sed -n 's/.*error: \([0-9]*\).*/\1/p' | head -n 1)"
  fi
}
ask upgraded "$UPGRADED"
ask inspected "$INSPECTED"
ask tunnelled "$TUNNELLED"
ask refused "$REFUSED"
