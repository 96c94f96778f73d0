# shellcheck shell=bash disable=SC2154  # sourced by setup.sh, whose functions and variables it uses
# The routing programs of the black routers (docs/decisions/0006-frr.md).
#
# frr: zebra, ospf6d, pim6d and vtysh, built from the distribution's own source package into
# .cache/frr/<version>-<recipe>, to which .cache/frr/current points:
#   sbin/ bin/ lib/   the programs, and the libraries that not every machine has
#   version           of the source package;   sources: SHA-256 of its files;   checksums: of the result
# smcroute: static multicast routes for networks without that build; unpacked into .cache/smcroute and
# not installed, as the package would start a daemon that takes the machine's own multicast routing.

frr_options=(
    --enable-pim6d --enable-user=root --enable-group=root --disable-doc --disable-dependency-tracking
    --sysconfdir=/etc/frr --localstatedir=/run/frr
    --disable-bgpd --disable-ripd --disable-ripngd --disable-ospfd --disable-isisd --disable-ldpd
    --disable-eigrpd --disable-babeld --disable-nhrpd --disable-fabricd --disable-pbrd
    --disable-vrrpd --disable-pathd --disable-bfdd --disable-watchfrr --disable-staticd
    --disable-ospfapi --disable-ospfclient --disable-irdp --disable-rtadv
)

setup_frr() {
    local builds=$cache/frr recipe work package target
    if [[ ${FRR:-} == no ]]; then
        say "FRR is not wanted: black routers use static multicast routes"
        return
    fi
    recipe=$(frr_recipe)
    [[ -e $builds/current/checksums && $(readlink "$builds/current") == *-"$recipe" ]] && return
    require_space
    install_packages "$here/packages-frr.txt"
    mkdir -p "$builds"
    rm -rf "$builds"/build.*
    work=$(mktemp -d "$builds/build.XXXXXX")
    # shellcheck disable=SC2064  # the directory of this call
    trap "rm -rf '$work'" EXIT
    say "fetching the source of FRR"
    frr_quietly "fetching the source package frr" fetch_frr "$work"
    package=$(<"$work/tree/version")
    say "building FRR $package (once; one to three minutes; log: .cache/frr/build.log)"
    frr_quietly "building FRR $package" build_frr "$work"
    target=$builds/$package-$recipe
    rm -rf "$target"
    mv "$work/tree" "$target"
    ln -sfn "${target##*/}" "$builds/current"
    find "$builds" -mindepth 1 -maxdepth 1 -type d ! -path "$target" -exec rm -rf {} +
    trap - EXIT
}

frr_quietly() {
    local what=$1
    shift
    quietly_into "$cache/frr/build.log" "$what" \
        "cure that and run 'make setup' again, or do without it: FRR=no (then black routers use static multicast routes)" "$@"
}

# What the result is made by; comments are no part of it.
frr_recipe() {
    { declare -p frr_options && declare -f build_frr frr_libraries && distribution; } |
        sha256sum | cut -c 1-12
}

distribution() { sed -nE 's/^(ID|VERSION_CODENAME)=//p' /etc/os-release; }

# The sources of apt that are the distribution's own, as sources of source packages.
frr_sources() {
    local key site release component
    for key in "$archive_key" /usr/share/keyrings/ubuntu-archive-keyring.gpg ""; do
        [[ -n $key && ! -e $key ]] || break
    done
    apt-get indextargets --format '$(ORIGIN) $(SITE) $(RELEASE) $(COMPONENT)' "Identifier: Packages" |
        sed -nE 's/^(Debian|Ubuntu) //p' | sort -u |
        while read -r site release component; do
            echo "deb-src ${key:+[signed-by=$key]} $site $release $component"
        done
}

fetch_frr() ( # a shell of its own: it changes the directory
    cd "$1" && mkdir tree && frr_sources >sources && cat sources || return
    if [[ ! -s sources ]]; then
        echo "E: apt knows no source of Debian's or Ubuntu's own packages"
        return 1
    fi
    private_apt "$1" -o APT::Update::Error-Mode=any update &&
        private_apt "$1" source --download-only frr &&
        sha256sum frr_*.dsc frr_*.tar.* >tree/sources &&
        sed -nE 's/^Version: //p' frr_*.dsc | head -n 1 >tree/version &&
        dpkg-source --no-check -x frr_*.dsc source
)

build_frr() ( # likewise
    local tree=$1/tree program
    cd "$1/source" && mkdir "$tree/sbin" "$tree/bin" "$tree/lib" || return
    # The interpreter that builds must be the distribution's, whose header files are installed.
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHON=/usr/bin/python3
    [[ -x configure ]] || autoreconf -fi || return
    ./configure "${frr_options[@]}" CFLAGS='-O1 -g0' &&
        make -j "$(nproc)" &&
        make install DESTDIR="$1/install" || return
    for program in zebra ospf6d pim6d; do
        find "$1/install" -path "*/sbin/$program" -exec install -s {} "$tree/sbin" \; || return
    done
    find "$1/install" -path '*/bin/vtysh' -exec install -s {} "$tree/bin" \; &&
        install -s "$(find "$1/install" -name libfrr.so.0)" "$tree/lib" &&
        frr_libraries "$tree" &&
        "$tree/sbin/pim6d" --version &&
        (cd "$tree" && sha256sum sbin/* bin/* lib/* >checksums)
)

# Puts the libraries beside the programs, which then run wherever the C library is: so the guest's image
# and a machine without the packages need nothing more.
frr_libraries() {
    local tree=$1 file
    patchelf --set-rpath '$ORIGIN/../lib' "$tree"/sbin/* "$tree"/bin/* "$tree"/lib/* || return
    ldd "$tree"/sbin/* "$tree"/bin/* | sed -nE 's/^.* => (\/[^ ]+) .*/\1/p' | sort -u |
        grep -vE "^$tree/|/lib(c|m|dl|rt|pthread|resolv|gcc_s)\.so" |
        while read -r file; do
            install -s "$file" "$tree/lib" && patchelf --set-rpath '$ORIGIN' "$tree/lib/${file##*/}" || return
        done
}

setup_smcroute() {
    local tree=$cache/smcroute work
    [[ -e $tree/version ]] && return
    say "fetching smcroute"
    rm -rf "$cache"/smcroute-fetch.*
    work=$(mktemp -d "$cache/smcroute-fetch.XXXXXX")
    chmod 755 "$work" # apt drops its rights while it fetches
    # shellcheck disable=SC2064  # the directory of this call
    trap "rm -rf '$work'" EXIT
    if ! fetch_smcroute "$work" >"$cache/setup.log" 2>&1; then
        update_lists
        quietly "fetching the package smcroute" "check the network, then run 'make setup' again" \
            fetch_smcroute "$work"
    fi
    rm -rf "$tree"
    mv "$work/tree" "$tree"
    rm -rf "$work"
    trap - EXIT
}

fetch_smcroute() ( # a shell of its own: it changes the directory
    cd "$1" && apt-get download -q smcroute && dpkg-deb -x smcroute_*.deb tree &&
        rm -rf tree/etc tree/lib tree/usr/share &&
        dpkg-deb -f smcroute_*.deb Version >tree/version &&
        tree/usr/sbin/smcrouted -v
)
