#!/usr/bin/env bash
# Links the module with Debian's whole policy, in a store of its own, and prints the store's folder. Nothing is loaded.
# The linker refuses a policy that breaks a module's promises (neverallow), ours and Debian's.
#
# usage: link.sh [MODULE.pp]...    more modules, for a trial: they do not stay in the store
set -euo pipefail
# Where Debian has semodule, also for those who are not root.
PATH=$PATH:/usr/sbin

here=$(cd "$(dirname "$0")" && pwd)
target=$here/../../target/selinux
store=$target/store

mkdir -p "$target"
exec 9>"$target/lock"
flock 9

make -s -C "$here" DISTRO=debian >&2

# The package is taken apart, not installed: it would configure SELinux on this machine.
modules=/usr/share/selinux/default
if [ ! -e "$modules/base.pp.bz2" ]; then
  modules=$target/package$modules
  if [ ! -e "$modules/base.pp.bz2" ]; then
    rm -rf "$target/package" "$target/download"
    mkdir "$target/download"
    # apt-get drops its rights to download, which then must be able to write there.
    chmod 777 "$target/download"
    (cd "$target/download" && apt-get download -qq selinux-policy-default >&2)
    dpkg-deb -x "$target"/download/*.deb "$target/package"
    rm -rf "$target/download"
  fi
fi

link() {
  local root=$1
  shift
  # It says on standard error which users this machine lacks.
  semodule -n -s default -p "$root" -i "$@" 2>"$target/linker.log" || {
    cat "$target/linker.log" >&2
    return 1
  }
}

if [ ! -e "$store/complete" ]; then
  rm -rf "$store"
  mkdir -p "$store/etc/selinux/default" "$store/var/lib/selinux/default"
  printf 'module-store = direct\nexpand-check = 1\n' >"$store/etc/selinux/semanage.conf"
  link "$store" "$modules"/*.pp.bz2
  touch "$store/complete"
fi

module=$target/debian/sealpod.pp
if [ $# -gt 0 ]; then
  trial=$(mktemp -d)
  trap 'rm -rf "$trial"' EXIT
  cp -r "$store/etc" "$store/var" "$trial"
  link "$trial" "$module" "$@"
elif [ ! "$store/linked" -nt "$module" ]; then
  link "$store" "$module"
  touch "$store/linked"
fi
realpath "$store"
