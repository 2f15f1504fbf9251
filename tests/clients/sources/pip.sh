ask() {
  # A plain http index is taken only where --trusted-host names it, whatever a proxy makes of it.
  if said=$("$PYTHON" -m pip --disable-pip-version-check --isolated --no-cache-dir --retries 0 download -q --no-deps -d "$1" \
    --trusted-host upgraded.example --index-url "$2/simple/" demo 2>&1); then
    test -f "$1/demo-1-py3-none-any.whl" && echo "$1 200"
  else
    echo "$1 $(printf %s "$said" | grep -q 'No matching distribution' && echo failed)"
  fi
}
ask upgraded "$UPGRADED"
ask inspected "$INSPECTED"
ask tunnelled "$TUNNELLED"
ask refused "$REFUSED"
