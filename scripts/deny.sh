#!/usr/bin/env bash
# Checks the dependencies: licences, duplicates and sources always; advisories where their database can be fetched.
set -euo pipefail

version=0.20.2
# By its path: another cargo-deny may come first in PATH.
deny=${CARGO_HOME:-$HOME/.cargo}/bin/cargo-deny
if ! "$deny" --version 2>/dev/null | grep -q "$version"; then
  # Without optimisation: building it takes longer than all that it checks.
  CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --debug --locked --force --version "$version" cargo-deny
fi
"$deny" --locked check bans licenses sources

# The advisories' database is fetched from its repository, which not every machine reaches.
if timeout 20 git ls-remote --quiet https://github.com/rustsec/advisory-db HEAD >/dev/null 2>&1; then
  "$deny" --locked check advisories
else
  echo "note: advisories not checked: their database cannot be reached from here"
fi
