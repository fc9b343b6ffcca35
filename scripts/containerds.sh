#!/usr/bin/env bash
# Fetches newer releases of containerd than the distribution has, for the tests of pods: unpacked into target/, not installed.
set -euo pipefail
cd "$(dirname "$0")/.."

mirror=https://deb.debian.org/debian

# fetch FOLDER SUITE: the containerd of a Debian suite.
fetch() {
  local folder=target/containerd/$1 suite=$2 work stanza file sum
  [ -x "$folder/containerd" ] && return
  echo "fetching containerd $1 from Debian $suite"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' RETURN
  curl -fsS --retry 3 "$mirror/dists/$suite/main/binary-amd64/Packages.xz" -o "$work/packages.xz"
  stanza=$(xz -dc "$work/packages.xz" | awk -v RS= '/^Package: containerd\n/')
  file=$(sed -n 's/^Filename: //p' <<<"$stanza")
  sum=$(sed -n 's/^SHA256: //p' <<<"$stanza")
  curl -fsS --retry 3 "$mirror/$file" -o "$work/containerd.deb"
  echo "$sum  $work/containerd.deb" | sha256sum --check --quiet
  dpkg-deb -x "$work/containerd.deb" "$work/unpacked"
  mkdir -p "$(dirname "$folder")"
  rm -rf "$folder"
  mv "$work/unpacked/usr/bin" "$folder"
}

fetch 1.7 trixie
fetch 2 forky
