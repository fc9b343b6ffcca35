#!/usr/bin/env bash
# Installs what building, testing and the demo need and this machine lacks. Does nothing when all is there.
set -euo pipefail

# command:package pairs; a path, which may be a pattern, stands for a file that no command shows.
needs=(
  cc:build-essential
  pkg-config:pkg-config
  curl:curl
  /etc/ssl/certs/ca-certificates.crt:ca-certificates
  xz:xz-utils
  qemu-system-x86_64:qemu-system-x86
  '/usr/share/OVMF/OVMF_CODE*.fd:ovmf'
  swtpm:swtpm
  swtpm_setup:swtpm-tools
  docker-registry:docker-registry
  skopeo:skopeo
  /usr/share/containers/seccomp.json:golang-github-containers-common
  openssl:openssl
  /usr/sbin/mkfs.ext4:e2fsprogs
  /usr/sbin/losetup:mount
  python3:python3
  cpio:cpio
  protoc:protobuf-compiler
  /usr/include/google/protobuf/empty.proto:libprotobuf-dev
  containerd:containerd
  runc:runc
  /usr/lib/cni/bridge:containernetworking-plugins
  ip:iproute2
  /usr/sbin/iptables:iptables
  ping:iputils-ping
  /usr/lib/x86_64-linux-gnu/libseccomp.a:libseccomp-dev
  checkmodule:checkpolicy
  /usr/sbin/semodule:policycoreutils
  semodule_package:semodule-utils
  sesearch:setools
  /usr/sbin/selabel_lookup:selinux-utils
  /usr/share/selinux/devel/Makefile:selinux-policy-dev
  shellcheck:shellcheck
  buildah:buildah
  mmdebstrap:mmdebstrap
  jq:jq
  '/usr/lib/postgresql/*/bin/initdb:postgresql'
  pip3:python3-pip
  # Ubuntu's archive has no kernel for guests; Debian's has, signed with these keys.
  /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
)

missing=()
for need in "${needs[@]}"; do
  probe=${need%%:*}
  package=${need##*:}
  case $probe in
    /*) compgen -G "$probe" >/dev/null || missing+=("$package") ;;
    *) command -v "$probe" >/dev/null 2>&1 || missing+=("$package") ;;
  esac
done

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || {
    echo "error: missing: ${missing[*]} (Debian's names), and there is no apt-get to install them" >&2
    exit 1
  }
  echo "installing ${missing[*]}"
  # docker-registry would start a registry on port 5000, postgresql a database on 5432; the tests and the demo start
  # their own.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
    as_root chmod +x /usr/sbin/policy-rc.d
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# The Makefile looks for cargo there too.
export PATH="$HOME/.cargo/bin:$PATH"
if ! command -v cargo >/dev/null; then
  echo "installing the Rust toolchain with rustup"
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --no-modify-path || {
    echo "error: cannot install Rust; see https://rustup.rs, then run this again" >&2
    exit 1
  }
  echo "hint: add $HOME/.cargo/bin to PATH to use cargo yourself"
fi
