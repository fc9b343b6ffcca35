#!/usr/bin/env bash
# Builds the guest's two programs, as small as they go: target/x86_64-unknown-linux-gnu/guest/sealpod-{agent,loader}.
set -euo pipefail
cd "$(dirname "$0")/.."

build() {
  cargo build --profile guest --locked --target x86_64-unknown-linux-gnu --package "$1"
}

# One by one: together, the loader would get its dependencies with all that the agent wants of them.
both="-C force-unwind-tables=no \
  -C link-arg=-Wl,--no-eh-frame-hdr -C link-arg=-Wl,-T,$PWD/guest/without-unwinding.ld"
# The loader hashes with BMI2's rotation, which sets no flags: emulated, that takes a third of the time.
RUSTFLAGS="-C target-feature=+crt-static,+bmi2 $both -C relocation-model=static -C link-arg=-nostdlib -C link-arg=-nostartfiles" build sealpod-loader
RUSTFLAGS="-C target-feature=+crt-static $both -C link-arg=-Wl,--pack-dyn-relocs=relr" build sealpod-agent
