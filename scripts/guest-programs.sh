#!/usr/bin/env bash
# Builds the guest's two programs, as small as they go: target/x86_64-unknown-linux-gnu/guest/sealpod-{agent,loader}.
# They are measured: with the same toolchain and C library they are the same bytes wherever the tree and cargo's home lie.
set -euo pipefail
cd -P "$(dirname "$0")/.."

triple=x86_64-unknown-linux-gnu
target=${CARGO_TARGET_DIR:-target}/$triple

# A package with a profile, and rustc's flags. Cargo takes them one by one, so that a path may have spaces.
build() {
  local package=$1 profile=$2 IFS=$'\x1f'
  shift 2
  CARGO_ENCODED_RUSTFLAGS="$*" cargo build --profile "$profile" --locked --target "$triple" --package "$package"
}

# Panics name source files. Cargo leaves these flags out of the hash that symbols carry, so here may be any place; all
# others must not name one. The linker runs in the workspace's folder.
both=(
  "--remap-path-prefix=$PWD=/sealpod"
  "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
  -C force-unwind-tables=no
  -C "link-arg=-Wl,--no-eh-frame-hdr"
  -C "link-arg=-Wl,-T,guest/without-unwinding.ld"
)

# One by one: together, the loader would get its dependencies with all that the agent wants of them.
# The loader hashes with BMI2's rotation, which sets no flags: emulated, that takes a third of the time.
build sealpod-loader loader -C target-feature=+crt-static,+bmi2 "${both[@]}" -C relocation-model=static \
  -C link-arg=-nostdlib -C link-arg=-nostartfiles
build sealpod-agent guest -C target-feature=+crt-static "${both[@]}" -C link-arg=-Wl,--pack-dyn-relocs=relr
cp "$target/loader/sealpod-loader" "$target/guest/"
