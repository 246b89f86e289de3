# shellcheck shell=bash
# The virtual KVM host's kernel, initramfs and emulator, made once and kept in a cache folder. Sourced.
# The kernel is Debian's newest linux-image-amd64, unpacked and not installed; so is the emulator where
# the installed one is older than QEMU_MAJOR.

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=hack/lib/packages.sh
. "$here/../packages.sh"

# Modules the root file system and the streams need, and those that make device nodes. The kernel
# asks for all others itself, when they are used.
INITRAMFS_MODULES="virtio_pci 9p 9pnet_virtio overlay virtio_console kvm-amd tun fuse vhost_vsock loop"

# QEMU 7.2 of Debian 12 takes 1.4 times the processor time of 10.0 of its backports for the same cases.
QEMU_MAJOR=10

# make_image CACHE: sets KERNEL, MODULES (a folder with lib/modules), INITRAMFS and QEMU.
make_image() {
    local cache=$1 version
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    install_packages qemu-system-x86 busybox-static cpio kmod xz-utils
    MODULES=$cache/kernel
    [ -d "$MODULES" ] || unpack_kernel "$MODULES"
    KERNEL=$MODULES/boot/vmlinux
    find_qemu "$cache/qemu"
    version=$(ls "$MODULES/lib/modules")
    INITRAMFS=$cache/initramfs-$(sha256sum "${BASH_SOURCE[0]}" "$here/initramfs-init" | sha256sum | cut -c -12).gz
    [ -e "$INITRAMFS" ] || pack_initramfs "$MODULES" "$version" "$INITRAMFS"
    exec 9>&-
}

unpack_kernel() { # TARGET
    local work=$1.new package
    rm -rf "$work"
    mkdir -p "$work"
    refresh_package_lists
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
    unpack_package "$work" "$package"
    depmod -b "$work" "$(ls "$work/lib/modules")"
    extract_vmlinux "$work"/boot/vmlinuz-* >"$work/boot/vmlinux"
    mv "$work" "$1"
}

# Firmware and libraries are those of the installed one, which suit it.
find_qemu() { # CACHE
    local major
    major=$(qemu-system-x86_64 --version | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p')
    QEMU=qemu-system-x86_64
    [ "$major" -lt "$QEMU_MAJOR" ] || return 0
    [ -d "$1" ] || unpack_qemu "$1"
    QEMU=$1/usr/bin/qemu-system-x86_64
}

# From the backports beside the package archive that this machine uses, which need not be among its own
# sources and do not become one.
unpack_qemu() { # TARGET
    local work=$1.new archive apt
    rm -rf "$work"
    mkdir -p "$work"/apt/{lists,cache/archives}/partial
    archive=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' | sed -n 's/ bookworm$//p' | head -n 1)
    if [ -z "$archive" ]; then
        echo "no package source has Debian 12 (bookworm), whose backports have QEMU $QEMU_MAJOR" >&2
        return 1
    fi
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive bookworm-backports main" \
        >"$work/apt/sources"
    apt=(-o Dir::Etc::sourcelist="$work/apt/sources" -o Dir::Etc::sourceparts=/nonexistent
        -o Dir::State::lists="$work/apt/lists" -o Dir::Cache="$work/apt/cache" -o APT::Sandbox::User=root)
    apt-get "${apt[@]}" update -qq </dev/null >/dev/null
    unpack_package "$work" qemu-system-x86/bookworm-backports "${apt[@]}"
    rm -r "$work/apt"
    mv "$work" "$1"
}

unpack_package() { # FOLDER PACKAGE [APT-OPTION...]
    echo "downloading $2 for the virtual KVM host" >&2
    # As root apt would drop its rights, which may not suffice for the cache folder.
    (cd "$1" && apt-get download -qq -o APT::Sandbox::User=root "${@:3}" "$2" </dev/null)
    dpkg -x "$1"/*.deb "$1"
    rm "$1"/*.deb
}

# Unpacking itself takes the kernel some seconds in emulation, and QEMU boots the ELF file as well.
# Where the payload lies is told by the setup header of the x86 boot protocol.
extract_vmlinux() { # BZIMAGE
    local setup_sectors offset length
    setup_sectors=$(od -An -tu1 -j $((0x1f1)) -N 1 "$1")
    offset=$(od -An -tu4 -j $((0x248)) -N 4 "$1")
    length=$(od -An -tu4 -j $((0x24c)) -N 4 "$1")
    # The last four bytes are the unpacked size and not part of the xz stream.
    dd if="$1" bs=1M iflag=skip_bytes,count_bytes skip=$(((setup_sectors + 1) * 512 + offset)) \
        count=$((length - 4)) status=none | xz -dc
}

pack_initramfs() { # MODULES VERSION TARGET
    local root name module number=10
    root=$(mktemp -d)
    mkdir -p "$root"/{bin,proc,sys,dev,modules,lower,upper,held,job,root}
    cp /bin/busybox "$root/bin/busybox"
    install -m 755 "$here/initramfs-init" "$root/init"
    while read -r module; do
        cp "$module" "$root/modules/$number-${module##*/}"
        number=$((number + 1))
    done < <(for name in $INITRAMFS_MODULES; do
        modprobe -d "$1" -S "$2" --show-depends "$name"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }')
    (cd "$root" && find . | sort | cpio -o -H newc --quiet | gzip -1) >"$3.new"
    mv "$3.new" "$3"
    rm -rf "$root"
}
