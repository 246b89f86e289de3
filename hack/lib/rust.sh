# shellcheck shell=bash
# Cargo, at least as new as the workspace asks for. Sourced, with `root` set.

# shellcheck source=hack/lib/packages.sh
. "$root/hack/lib/packages.sh"

rust_version_wanted() {
    sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml"
}

rust_version() {
    rustc --version 2>/dev/null | cut -d ' ' -f 2
}

rust_is_new_enough() {
    local wanted have
    wanted=$(rust_version_wanted)
    have=$(rust_version)
    [ -n "$have" ] && [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ]
}

# ensure_rust: what is on the machine, or else what Debian's archive has.
ensure_rust() {
    PATH=$PATH:$HOME/.cargo/bin
    rust_is_new_enough && return
    [ "$(id -u)" != 0 ] || install_debian_rust || true
    rust_is_new_enough && return
    echo "Rust $(rust_version_wanted) or later is needed: install it, for example by rustup" >&2
    return 1
}

# Debian's newest Rust for its stable release, which brings some newer libraries with it. The
# package lists are apart, so that nothing else ever comes from that release; and nothing is removed.
install_debian_rust() {
    local lists=${XDG_CACHE_HOME:-$HOME/.cache}/husk/rust suite=trixie-backports
    local apt=(apt-get -qq -o "Dir::Etc::SourceList=$lists/sources.list" -o Dir::Etc::SourceParts=-
        -o "Dir::State::Lists=$lists" -o DPkg::Lock::Timeout=600)
    echo "installing Rust from Debian's $suite" >&2
    mkdir -p "$lists/partial"
    printf 'deb http://deb.debian.org/debian %s main\n' trixie "$suite" >"$lists/sources.list"
    "${apt[@]}" update </dev/null >/dev/null
    DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends --no-remove \
        -t "$suite" cargo rustc rustfmt rust-clippy </dev/null >/dev/null
}
