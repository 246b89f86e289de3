# shellcheck shell=bash
# Debian packages: what a tool needs is installed when it is missing. Sourced.

# install_packages NAME...
install_packages() {
    local name missing=()
    for name in "$@"; do
        package_installed "$name" || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        echo "these Debian packages are missing: ${missing[*]}" >&2
        return 1
    fi
    echo "installing Debian packages: ${missing[*]}" >&2
    refresh_package_lists
    install_without_starting "${missing[@]}"
}

# Daemons that come along, as Docker's does, are not started: Debian's policy says so for as long as
# it takes, unless this machine has a policy of its own. A subshell, for the trap.
install_without_starting() ( # NAME...
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -qq -y \
        --no-install-recommends "$@" </dev/null >/dev/null
)

package_installed() { # NAME
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Best effort: lists that are locked are being refreshed by somebody else, and old lists may do.
refresh_package_lists() {
    apt-get update -qq </dev/null >/dev/null 2>&1 || true
}
