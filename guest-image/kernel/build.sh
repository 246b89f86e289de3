#!/bin/bash
# Builds the guest kernel and prints the path of its vmlinux, the last and only line on stdout.
#
# The result is kept under ${XDG_CACHE_HOME:-~/.cache}/husk/kernel/KEY/, where KEY is the hash of
# everything that goes in. A second call with the same inputs only finds it there.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tarball=/usr/src/linux-source-6.12.tar.xz
cache=${XDG_CACHE_HOME:-$HOME/.cache}/husk/kernel
fragments=("$here"/config/*.config)
# In the order of their numbers.
patches=("$here"/patches/*.patch)

# What a person sees as the total; a wrong guess harms nothing else.
objects_about=2150

# The same inputs give the same bytes: the image does not know when, where or by whom it was built,
# nor which optional tools were at hand.
export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970'
export KBUILD_BUILD_USER=husk KBUILD_BUILD_HOST=husk KBUILD_BUILD_VERSION=1
make_kernel=(make -j"$(nproc)" ARCH=x86_64 RUSTC=false PAHOLE=false)

say() { printf 'guest kernel: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

check_tools() {
    local tool missing=()
    for tool in bc bison flex gcc ld make objcopy patch readelf tar xz; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [ -e /usr/include/gelf.h ] || missing+=(gelf.h)
    [ -e "$tarball" ] || missing+=("$tarball")
    [ ${#missing[@]} -eq 0 ] ||
        die "missing: ${missing[*]}; install: $(grep -v '^#' "$here/../packages.list" | paste -sd' ')"
}

# The lines of the fragments that ask for something.
requested() {
    grep -hE '^(# )?CONFIG_' "${fragments[@]}"
}

# Names the build: sources, patches, options, this script, compiler and linker.
input_key() {
    {
        sha256sum <"$tarball"
        cat "${patches[@]}"
        requested
        cat "${BASH_SOURCE[0]}"
        gcc --version
        ld --version
    } | sha256sum | cut -c1-16
}

# Each option stands below a comment, in the same paragraph, that says why.
check_reasons() {
    awk '
        FNR == 1 || /^$/ { reason = 0 }
        /^CONFIG_/ || /^# CONFIG_.* is not set$/ {
            if (!reason) { print FILENAME ": without a reason: " $0 > "/dev/stderr"; failed = 1 }
            next
        }
        /^#/ { reason = 1 }
        END { exit failed }
    ' "${fragments[@]}" || die "options need reasons"
}

# Each patch says in a paragraph of its own, above the first change, what it is for.
check_patches() {
    local file
    for file in "${patches[@]}"; do
        awk '/^--- / { exit } /^$/ { parts++ } END { exit parts < 2 }' "$file" ||
            die "patches need reasons: $(basename "$file")"
    done
}

# Patches the sources in the current directory. What fits only nearly is looked at by a person.
apply_patches() {
    local file
    for file in "${patches[@]}"; do
        say "patching: $(head -n 1 "$file")"
        patch -p1 --forward --fuzz=0 --no-backup-if-mismatch --silent <"$file" ||
            die "does not apply to $(basename "$tarball"): $(basename "$file")"
    done
}

# Writes .config in the current directory from tinyconfig and the fragments.
configure() {
    "${make_kernel[@]}" -s tinyconfig
    requested >>.config
    "${make_kernel[@]}" -s olddefconfig 2>/dev/null
}

# Fails, naming them all, when an option that a fragment asks for is not so in .config.
check_config() {
    local line name lost=()
    while IFS= read -r line; do
        case $line in
        CONFIG_*)
            grep -qxF -- "$line" .config || lost+=("$line")
            ;;
        '# CONFIG_'*' is not set')
            name=${line#\# }
            name=${name% is not set}
            ! grep -q "^$name=" .config || lost+=("$name=n")
            ;;
        esac
    done < <(requested)
    [ ${#lost[@]} -eq 0 ] || die "options dropped or changed by the kernel's own rules: ${lost[*]}"
}

# Copies make's output to the log and tells, now and then, how far it is.
show_progress() {
    awk -v log_file="$1" -v about="$objects_about" '
        BEGIN { start = systime() }
        { print > log_file }
        $1 == "CC" || $1 == "AS" {
            if (++done % 200 == 0)
                printf "guest kernel: %d of about %d objects, %d s\n", done, about, systime() - start > "/dev/stderr"
        }
        $1 == "LD" && $2 == "vmlinux" { print "guest kernel: linking" > "/dev/stderr" }
    '
}

# The image must be what the VMM loads: a 64-bit ELF entered at the kernel's 64-bit entry point.
check_image() {
    local entry start
    readelf -h "$1" | grep -q 'Class:.*ELF64' || die "vmlinux is not a 64-bit ELF file"
    entry=$(readelf -h "$1" | sed -n 's/.*Entry point address: *0x//p')
    start=$(sed -n 's/^0*\([0-9a-f]*\) . phys_startup_64$/\1/p' "$2")
    [ "$entry" = "$start" ] || die "vmlinux is entered at 0x$entry, not at the 64-bit entry 0x$start"
}

# Builds in the directory $1 and leaves the results in $1/out.
build() {
    local work=$1 log=$2
    say "unpacking $(basename "$tarball")"
    tar -xf "$tarball" -C "$work" --strip-components=1
    cd "$work"
    apply_patches
    say "configuring"
    configure
    check_config
    say "compiling; 10 minutes on two cores"
    if ! "${make_kernel[@]}" vmlinux 2>&1 | show_progress "$log"; then
        tail -n 20 "$log" >&2
        die "make failed; everything it said is in $log"
    fi
    mkdir out
    objcopy --strip-all vmlinux out/vmlinux
    check_image out/vmlinux System.map
    cp .config out/config
    cp System.map out/
    mv "$log" out/build.log
}

check_tools
check_reasons
check_patches
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
key=$(input_key)
result=$cache/$key
if [ ! -e "$result/vmlinux" ]; then
    work=$(mktemp -d "$cache/$key.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    (build "$work" "$cache/$key.log") >&2
    mv "$work/out" "$result"
    say "done: $(stat -c %s "$result/vmlinux") bytes"
fi
printf '%s\n' "$result/vmlinux"
