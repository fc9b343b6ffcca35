#!/usr/bin/env bash
# Compiles all tests and runs them in two lanes: those of a node, which boot one VM at a time and leave a processor idle,
# beside all others. Its arguments are for the tests themselves.
set -euo pipefail

cd "$(dirname "$0")/.."
logs=target/tests
rm -rf "$logs" && mkdir -p "$logs"

# One line for each program of tests: its name, its package's folder (where cargo would run it), and itself.
cargo test --release --locked --workspace --all-targets --no-run --message-format json-render-diagnostics |
  jq --raw-output 'select(.reason == "compiler-artifact" and .profile.test and .executable != null)
    | [.target.name, (.manifest_path | rtrimstr("/Cargo.toml")), .executable] | @tsv' >"$logs/programs"

# Runs the programs whose lines it reads, and notes which have ended, and which have failed.
lane() {
  local name folder program began
  while IFS=$'\t' read -r name folder program; do
    began=$SECONDS
    printf '\n--- %s (%s)\n' "$name" "${folder#"$PWD"/}"
    (cd "$folder" && "$program" "$@" </dev/null) || echo "$name (${folder#"$PWD"/})" >>"$logs/failed"
    echo "$name" >>"$logs/ended"
    printf -- '--- %s took %d s\n' "$name" $((SECONDS - began))
  done
}

is_of_node='^node\t[^\t]*/tests\t'
# With a process group of its own, so that all of it can be ended where this is.
set -m
lane "$@" < <(grep --perl-regexp "$is_of_node" "$logs/programs") >"$logs/node.log" 2>&1 &
node=$!
set +m
trap 'kill -- "-$node" 2>/dev/null || true' EXIT
lane "$@" < <(grep --perl-regexp --invert-match "$is_of_node" "$logs/programs")
wait "$node" || true
cat "$logs/node.log"

if [ -s "$logs/failed" ]; then
  echo "error: tests failed in these programs:"
  sort "$logs/failed"
  exit 1
fi
if [ "$(wc -l <"$logs/ended")" != "$(wc -l <"$logs/programs")" ] || ! [ -s "$logs/programs" ]; then
  echo "error: not all programs of tests were run: $logs says which"
  exit 1
fi
echo "all tests of $(wc -l <"$logs/programs") programs passed"
