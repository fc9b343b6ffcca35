#!/usr/bin/env bash
# Renders the chart with Helm's own library, which it installs below target/ the first time.
#
# usage: render.sh [VALUES.yaml]...             the manifests for `kubectl apply`
#        render.sh --json [--hooks] [FILE]...   the same as an array; --hooks: with what only Helm runs
#        render.sh --lint | --values [FILE]...  what `helm lint` says; the chart's values with these (JSON)
#        render.sh --write                      deploy/manifests/, anew
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
library=$here/../../target/helm

mkdir -p "$library"
(
  flock 9
  if ! cmp -s "$here/requirements.txt" "$library/requirements.txt"; then
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --upgrade \
      --require-hashes --only-binary :all: --no-deps --target "$library/packages" --requirement "$here/requirements.txt" >&2
    cp "$here/requirements.txt" "$library/requirements.txt"
  fi
) 9>"$library/lock"
PYTHONPATH=$library/packages PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/render.py" "$@"
