ask() {
  mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
  echo "deb [trusted=yes] $2 ./" >"$1/sources.list"
  said=$(apt-get -o Dir::Etc::SourceList="$PWD/$1/sources.list" -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root \
    -o Dir::State::Lists="$PWD/$1/lists" -o Dir::Cache="$PWD/$1/cache" -o Dir::Etc::Parts=/dev/null -o Acquire::Retries=0 \
    -o Acquire::Languages=none update 2>&1)
  if find "$1/lists" -name '*Packages*' | grep -q .; then
    echo "$1 200"
  else
    echo "$1 $(printf %s "$said" | grep -oE '\b502\b' | head -n 1)"
  fi
}
ask upgraded "$UPGRADED"
ask inspected "$INSPECTED"
ask tunnelled "$TUNNELLED"
ask refused "$REFUSED"
