#!/bin/bash
# Bring a bare Debian 12 (or Ubuntu 24.04) to where the testbed runs: Debian packages, a kernel for
# the guest, QEMU, a virtual environment in the project. Every step looks first at what is there.
#
# Usage: setup.sh [packages|kernel|emulator|venv|frr|smcroute|owner]...   (all when none is named)
# PYTHON=<interpreter> chooses the interpreter of the virtual environment; FRR=no goes without FRR.

set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # where an ordinary user's PATH lacks them

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
cache=$project/.cache
venv=$project/.venv
python=${PYTHON:-/usr/bin/python3}
archive_key=/usr/share/keyrings/debian-archive-keyring.gpg
min_free_mib=4096

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}

# Runs a command quietly; its output is kept and its last line shown when it fails.
quietly() { quietly_into "$cache/setup.log" "$@"; }

quietly_into() {
    local log=$1 what=$2 cure=$3
    shift 3
    if ! "$@" >"$log" 2>&1; then
        local cause
        cause=$(grep -E '^(E:|ERROR|error|configure: error)' "$log" | head -n 1 || true)
        [[ -n $cause ]] || cause=$(tail -n 1 "$log")
        fail "$what failed: ${cause:-no message} (log: ${log#"$project/"}); $cure"
    fi
}

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    else
        sudo -- "$@"
    fi
}

require_root_for() {
    [[ $EUID -eq 0 ]] && return
    command -v sudo >/dev/null || fail "$1 needs root and sudo is not there; run as root: apt-get install -y --no-install-recommends $2"
}

require_space() {
    local free
    free=$(df --output=avail -BM "$project" | tail -n 1 | tr -dc 0-9)
    ((free >= min_free_mib)) ||
        fail "disk is short: $free MiB free for the project, $min_free_mib MiB needed; free some space or run 'make clean'"
}

missing_packages() { # of the list in a file
    local package
    for package in $(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1"); do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
    done
}

# apt's package lists are absent on a fresh image, and stale after a while.
update_lists() {
    require_root_for "apt-get update" ""
    quietly "apt-get update" "check the network and the sources of apt, then run 'make setup' again" \
        as_root apt-get update -q
}

setup_packages() { install_packages "$here/packages-host.txt"; }

install_packages() {
    local missing
    command -v apt-get >/dev/null || fail "no apt-get here; the testbed's set-up knows Debian 12 and Ubuntu 24.04"
    missing=$(missing_packages "$1" | tr '\n' ' ')
    [[ -z $missing ]] && return
    require_root_for "installing $missing" "$missing"
    require_space
    say "installing Debian packages: $missing"
    update_lists
    # tshark asks whether others may capture; nobody is there to answer.
    as_root debconf-set-selections <<<'wireshark-common wireshark-common/install-setuid boolean false'
    # shellcheck disable=SC2086  # a list of package names
    quietly "apt-get install" "cure what it says, then run 'make setup' again" \
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
}

# The newest 6.12 image of the distribution, else its default one.
kernel_package() {
    local meta target
    for meta in linux-image-6.12-amd64 linux-image-amd64 linux-image-generic; do
        target=$(apt-cache depends --important "$meta" 2>/dev/null |
            sed -nE 's/^ *Depends: (linux-image-[0-9][^ ]*)$/\1/p' | head -n 1)
        if [[ $meta == linux-image-6.12-amd64 && -z $target ]]; then
            target=$(apt-cache pkgnames linux-image-6.12 |
                grep -E '^linux-image-6\.12[.0-9]*\+deb[0-9]+-amd64(-unsigned)?$' | sort -V | tail -n 1 || true)
        fi
        if [[ -n $target ]]; then
            echo "$target"
            return
        fi
    done
}

setup_kernel() {
    local kernels=$cache/kernel package release work extra
    [[ -e $kernels/current/vmlinuz ]] && return
    require_space
    package=$(kernel_package)
    if [[ -z $package ]]; then
        update_lists
        package=$(kernel_package)
    fi
    [[ -n $package ]] || fail "apt knows no kernel package for the guest; check the sources of apt, then run 'make setup' again"
    release=${package#linux-image-}
    release=${release%-unsigned}
    say "fetching the guest's kernel: $package"
    mkdir -p "$kernels"
    work=$(mktemp -d "$kernels/fetch.XXXXXX")
    # shellcheck disable=SC2064  # the directory of this call
    trap "rm -rf '$work'" EXIT
    chmod 755 "$work"
    # Ubuntu splits its modules off; Debian's image has them.
    extra=$(apt-cache pkgnames linux-modules | grep -E "^linux-modules(-extra)?-$release\$" || true)
    cd "$work"
    if ! apt-get download -q "$package" $extra >"$cache/setup.log" 2>&1; then
        update_lists
        # shellcheck disable=SC2086
        quietly "apt-get download $package" "check the network, then run 'make setup' again" \
            apt-get download -q "$package" $extra
    fi
    cd "$project"
    for deb in "$work"/*.deb; do
        quietly "unpacking $package" "free disk space, then run 'make setup' again" dpkg-deb -x "$deb" "$work/tree"
        rm "$deb"
    done
    mv "$work/tree/boot/vmlinuz-$release" "$work/tree/vmlinuz"
    if [[ -d $work/tree/usr/lib/modules ]]; then
        mv "$work/tree/usr/lib" "$work/tree/lib"
    fi
    quietly "depmod" "install kmod, then run 'make setup' again" depmod -b "$work/tree" "$release"
    echo "$release" >"$work/tree/release"
    rm -rf "${kernels:?}/$release" "$work/tree/usr" "$work/tree/boot"
    mv "$work/tree" "$kernels/$release"
    ln -sfn "$release" "$kernels/current"
    rm -rf "$work"
    trap - EXIT
}

# QEMU before 8.1, emulating several processors, trips over kernels that patch their own code
# (docs/decisions/0001-vm-launcher.md). A newer one comes from the distribution's backports, into
# the project and not onto the machine; where there is none, the installed one has to do.
setup_emulator() {
    local tree=$cache/qemu version work site suite key=
    [[ -e $tree ]] && return
    version=$(qemu-system-x86_64 --version | sed -nE '1s/.*version ([0-9]+\.[0-9]+).*/\1/p')
    [[ $(printf '%s\n' "$version" 8.1 | sort -V | head -n 1) == 8.1 ]] && return
    suite=$(sed -nE 's/^VERSION_CODENAME="?([a-z]+)"?$/\1/p' /etc/os-release)
    site=$(apt-get indextargets --format '$(SITE)' \
        "Identifier: Packages" "Release: $suite" "Component: main" | head -n 1)
    [[ ! -e $archive_key ]] || key="[signed-by=$archive_key]"
    say "fetching a newer QEMU than $version from $suite-backports"
    work=$(mktemp -d "$cache/qemu-fetch.XXXXXX")
    mkdir "$work/tree"
    echo "deb $key $site $suite-backports main" >"$work/sources"
    if ! fetch_emulator "$work" >"$cache/setup.log" 2>&1; then
        say "there is none: the guest runs on QEMU $version, which may crash now and then"
        rm -rf "$work/tree"
        mkdir "$work/tree"
    fi
    mv "$work/tree" "$tree"
    rm -rf "$work"
}

fetch_emulator() ( # a shell of its own: it changes the directory, which is removed afterwards
    cd "$1" &&
        private_apt "$1" update &&
        private_apt "$1" download qemu-system-x86 qemu-system-data &&
        for deb in ./*.deb; do dpkg-deb -x "$deb" tree || return; done &&
        tree/usr/bin/qemu-system-x86_64 --version
)

# apt-get with the sources that a directory's file `sources` lists, and lists and cache in that directory:
# the machine's own stay as they are.
private_apt() {
    local home=$1
    shift
    mkdir -p "$home/lists/partial"
    apt-get -q -o "Dir::Etc::sourcelist=$home/sources" -o Dir::Etc::sourceparts=- \
        -o "Dir::State::lists=$home/lists" -o "Dir::Cache=$home/cache" -o Debug::NoLocking=1 "$@"
}

venv_stamp() {
    { cat "$project/pyproject.toml"; echo "$venv"; } | sha256sum | cut -d ' ' -f 1
    "$python" -c 'import sys; print(sys.version)' | sha256sum | cut -d ' ' -f 1
}

setup_venv() {
    local stamp=$venv/.setup-stamp
    [[ -x $(command -v "$python") ]] || fail "no interpreter $python; install python3, or name another: make setup PYTHON=..."
    [[ -e $stamp && $(<"$stamp") == "$(venv_stamp)" ]] && return
    require_space
    if [[ ! -e $stamp || $(tail -n 1 "$stamp") != "$(venv_stamp | tail -n 1)" || $(head -n 1 "$venv/bin/pip" 2>/dev/null) != "#!$venv/"* ]]; then
        say "creating the virtual environment .venv"
        rm -rf "$venv"
        quietly "creating .venv" "install python3-venv, or name another interpreter: make setup PYTHON=..." \
            "$python" -m venv "$venv"
    fi
    say "installing the project and its tools into .venv"
    rm -f "$stamp"
    quietly "pip install" "check the network and pip's settings, then run 'make setup' again" \
        "$venv/bin/python" -m pip install --disable-pip-version-check -e "$project[dev]"
    venv_stamp >"$stamp"
}

# What root made in a tree that belongs to somebody else goes to the owner of the tree.
setup_owner() {
    local owner
    owner=$(stat -c %u:%g "$project")
    [[ $EUID -eq 0 && $owner != 0:0 ]] || return 0
    find "$project" -xdev -user 0 -exec chown --no-dereference "$owner" {} +
}

# shellcheck source=testbed/setup/routing.sh
source "$here/routing.sh"

mkdir -p "$cache" || fail "cannot write to the project; change its owner, or clone it anew"
exec 9>"$cache/setup.lock"
flock 9
[[ $# -gt 0 ]] || set -- packages kernel emulator venv frr smcroute owner
for step in "$@"; do
    case $step in
    packages | kernel | emulator | venv | frr | smcroute | owner) "setup_$step" ;;
    *) fail "unknown step '$step'; known: packages kernel emulator venv frr smcroute owner" ;;
    esac
done
