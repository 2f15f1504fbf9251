ask() {
  mkdir "$1" && cd "$1" || exit 1
  if npm pack --silent --fetch-retries=0 --cache "$PWD/cache" --registry "$2/" demo >/dev/null 2>error && test -f demo-1.0.0.tgz; then
    echo "$1 200"
  else
    echo "$1 $(grep -oE 'E?502' error | tr -d E | head -n 1)$(test -s error || echo 502)"
  fi
  cd ..
}
ask upgraded "$UPGRADED"
ask inspected "$INSPECTED"
ask tunnelled "$TUNNELLED"
ask refused "$REFUSED"
