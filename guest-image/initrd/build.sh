#!/bin/bash
# Writes the initrd: build.sh AGENT OUT
#
# OUT becomes an uncompressed cpio archive (format "newc") of what contents.list names. The archive
# is written field by field, so that it needs no privilege and the same inputs give the same bytes:
# inode numbers count up, times are 0, the owner is root.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
S_IFDIR=$((8#040000)) S_IFCHR=$((8#020000)) S_IFREG=$((8#100000))
inode=0

die() { printf 'initrd: %s\n' "$*" >&2; exit 1; }

# pad BYTES: what was written so far is BYTES long; fill up to a multiple of 4.
pad() {
    local fill=$(((4 - $1 % 4) % 4))
    [ $fill -eq 0 ] || head -c $fill /dev/zero
}

# header NAME MODE SIZE MAJOR MINOR: 6 + 13 * 8 bytes of header, the name with its zero, padding.
header() {
    local name=$1 length=$((${#1} + 1))
    inode=$((inode + 1))
    #       magic inode mode uid gid links mtime size device rdevice name check
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\0' \
        $inode "$2" 0 0 1 0 "$3" 0 0 "$4" "$5" $length 0 "$name"
    pad $((110 + length))
}

# node TYPE NAME MODE [WHAT...]: one line of contents.list.
node() {
    local type=$1 name=$2 mode=$((8#$3)) size
    case $type in
    dir) header "$name" $((S_IFDIR | mode)) 0 0 0 ;;
    char) header "$name" $((S_IFCHR | mode)) 0 "$4" "$5" ;;
    file)
        [ "$4" = AGENT ] || die "contents.list: unknown source $4"
        size=$(stat -c %s "$agent")
        header "$name" $((S_IFREG | mode)) "$size" 0 0
        cat "$agent"
        pad "$size"
        ;;
    *) die "contents.list: unknown type $type" ;;
    esac
}

archive() {
    local line
    while IFS= read -r line; do
        case $line in '' | '#'*) continue ;; esac
        # shellcheck disable=SC2086  # the words of the line are the arguments
        node $line
    done <"$here/contents.list"
    header 'TRAILER!!!' 0 0 0 0
}

[ $# -eq 2 ] || die "usage: build.sh AGENT OUT"
agent=$1 out=$2
[ -f "$agent" ] || die "no such agent: $agent"
archive >"$out.new"
mv "$out.new" "$out"
