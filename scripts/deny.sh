#!/usr/bin/env bash
# Checks the dependencies: licences, duplicates and sources always; advisories where their database can be fetched.
set -euo pipefail

version=0.20.2
if ! cargo deny --version 2>/dev/null | grep -q "$version"; then
  cargo install --quiet --locked --version "$version" cargo-deny
fi
cargo deny --locked check bans licenses sources
