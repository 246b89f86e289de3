# shellcheck shell=bash
# Cargo, at least as new as the workspace asks for. Sourced.

rust_workspace=$(dirname "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")")

rust_version_wanted() {
    sed -n 's/^rust-version = "\(.*\)"/\1/p' "$rust_workspace/Cargo.toml"
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
    local kept=${XDG_CACHE_HOME:-$HOME/.cache}/husk/rust
    PATH=$PATH:$HOME/.cargo/bin
    rust_is_new_enough && return
    [ -d "$kept" ] || unpack_debian_rust "$kept" || true
    PATH=$kept/bin:$PATH
    rust_is_new_enough && return
    echo "Rust $(rust_version_wanted) or later is needed: install it, for example by rustup" >&2
    return 1
}

# Debian's newest Rust, of its stable release's backports. It is unpacked with all the libraries it
# needs and runs on those: the machine's own packages stay as they are.
unpack_debian_rust() { # DIR
    local new=$1.new suite=trixie-backports package tool
    local tools=(cargo cargo-clippy cargo-fmt clippy-driver rustc rustdoc rustfmt)
    echo "downloading Rust from Debian's $suite" >&2
    rm -rf "$new"
    mkdir -p "$new"/{bin,lists/partial,packages/partial}
    printf 'deb http://deb.debian.org/debian %s main\n' trixie "$suite" >"$new/sources.list"
    local apt=(apt-get -qq -o "Dir::Etc::SourceList=$new/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$new/lists" -o Dir::State::status=/dev/null
        -o "Dir::Cache::Archives=$new/packages" -o APT::Sandbox::User=root -o Debug::NoLocking=1)
    "${apt[@]}" update </dev/null >&2 &&
        "${apt[@]}" install -y --download-only --no-install-recommends -t "$suite" \
            libc6 cargo rust-clippy rustc rustfmt </dev/null >/dev/null || return
    for package in "$new"/packages/*.deb; do
        dpkg -x "$package" "$new" || return
    done
    for tool in "${tools[@]}"; do
        # shellcheck disable=SC2016 # $0 and $@ are the wrapper's
        printf '#!/bin/sh\nexec %q --library-path %q --argv0 "$0" %q "$@"\n' \
            "$1/usr/lib64/ld-linux-x86-64.so.2" "$1/usr/lib/x86_64-linux-gnu" "$1/usr/bin/$tool" >"$new/bin/$tool"
        chmod +x "$new/bin/$tool"
    done
    rm -r "$new/packages" "$new/lists"
    mv "$new" "$1"
}
