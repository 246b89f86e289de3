//! Messages to the file server that make no sense, or ask for more than there is.

use crate::cpu;
use crate::levels::{Tree, attributes, mounted};
use crate::log::{Report, say};
use crate::share::{
    Answer, BATCH_FORGET, COPY_FILE_RANGE, CREATE, DESTROY, EMFILE, ENFILE, FALLOCATE, FORGET,
    GETATTR, IN_HEADER, INIT, INIT_FLAGS, LAST, LINK, LOOKUP, MKDIR, MKNOD, O_CREAT, O_RDWR, OPEN,
    OPENDIR, READDIR, RENAME, RENAME2, RMDIR, ROOT, S_IFREG, SETATTR, SILENCE, SYMLINK, SYNCFS,
    Share, UNLINK, bytes_of, write_body,
};
use crate::transport::{
    Descriptor, Device, FS, NEXT, WRITE as WRITABLE, answer_of, queues, request_of,
};

/// The most descriptors that a guest may make a VMM hold, whatever the host allows.
const DESCRIPTORS_MAX: u32 = 128 * 1024;
/// Orders to write back whole file systems.
const SYNCS: u32 = 12;

fn refused(report: &mut Report, what: &str, answer: Answer) {
    let is_refused = matches!(answer, Err(error) if error != SILENCE);
    report.expect(is_refused, format_args!("{what}: {answer:?}"));
}

/// Names that are no name, in every operation that takes one.
pub(crate) fn names(report: &mut Report) {
    static LONG: [u8; 0x1_0000] = [b'n'; 0x1_0000];
    let Some((mut share, tree)) = mounted(report) else {
        return;
    };
    let names: [&[u8]; 14] = [
        b"",
        b".",
        b"..",
        b"/",
        b"../..",
        b"../mounts",
        b"a/b",
        b"/etc/passwd",
        b"marker/",
        b"./marker",
        b"bin/../marker",
        &LONG[..256],
        &LONG[..4096],
        &LONG,
    ];
    let modes = bytes_of(&[0o755, 0]);
    let create = bytes_of(&[O_RDWR | O_CREAT, 0o644, 0, 0]);
    let node = bytes_of(&[S_IFREG | 0o644, 0, 0, 0]);
    let (old, to) = (tree.marker.to_le_bytes(), tree.rootfs.to_le_bytes());
    for name in names {
        for (what, op, head) in [
            ("lookup", LOOKUP, &[][..]),
            ("mkdir", MKDIR, &modes),
            ("mknod", MKNOD, &node),
            ("create", CREATE, &create),
            ("unlink", UNLINK, &[]),
            ("rmdir", RMDIR, &[]),
            ("link", LINK, &old),
        ] {
            for parent in [tree.rootfs, ROOT] {
                refused(report, what, share.ask(op, parent, &[head, name, b"\0"]));
                // No end at all.
                refused(report, what, share.ask(op, parent, &[head, name]));
            }
        }
        refused(
            report,
            "symlink",
            share.ask(SYMLINK, tree.rootfs, &[name, b"\0target\0"]),
        );
        for parts in [[name, b"\0new\0"], [b"marker\0", name]] {
            let [from, into] = parts;
            let renamed = share.ask(RENAME, tree.rootfs, &[&to, from, into, b"\0"]);
            refused(report, "rename", renamed);
            let renamed = share.ask(RENAME2, tree.rootfs, &[&to, &[0; 8], from, into, b"\0"]);
            refused(report, "rename2", renamed);
        }
    }
    let is_there = share.lookup(tree.rootfs, b"marker").is_ok();
    report.expect(is_there, format_args!("the marker is gone"));
}

/// Every operation with bodies and lengths of no sense; sessions that begin and end in every way.
pub(crate) fn messages(report: &mut Report) {
    let Some((mut share, tree)) = mounted(report) else {
        return;
    };
    for op in (0..LAST + 1)
        .chain([4096, 1 << 16, u32::MAX])
        .filter(|op| *op != SYNCFS)
    {
        for byte in [0, 0xff] {
            for length in [0, 1, 7, 8, 24, 40, 64, 300] {
                report.tried();
                let body = [byte; 300];
                // Some are not answered, and come back all the same.
                let _ = share.ask(op, tree.rootfs, &[&body[..length]]);
            }
        }
    }
    if !share.init() {
        return report.wrong(format_args!("no new session"));
    }
    for length in [
        0,
        1,
        39,
        40,
        41,
        4096,
        1 << 20,
        (1 << 20) + 4097,
        1 << 31,
        u32::MAX,
    ] {
        let answer = share.ask_with_length(LOOKUP, ROOT, &[b"absent\0"], length);
        refused(report, "a message whose length is a lie", answer);
    }
    sessions(report, &mut share);
    let answer = share.lookup(ROOT, b"absent").map(|entry| entry.mode);
    report.expect(answer == Err(2), format_args!("an absent file: {answer:?}"));
}

/// INIT in every way, and what comes before it and after the end.
fn sessions(report: &mut Report, share: &mut Share) {
    for (major, minor) in [
        (0, 0),
        (6, 99),
        (7, 0),
        (7, 26),
        (8, 0),
        (u32::MAX, u32::MAX),
    ] {
        for flags in [0, INIT_FLAGS, u32::MAX] {
            report.tried();
            let mut body = [u32::MAX; 16];
            body[..4].copy_from_slice(&[major, minor, u32::MAX, flags]);
            for length in [0, 8, 16, 20, 64] {
                let _ = share.ask(INIT, 0, &[&bytes_of(&body)[..length]]);
            }
        }
    }
    share.tell(DESTROY, 0, &[]);
    refused(
        report,
        "lookup after the end",
        share.ask(LOOKUP, ROOT, &[b"x\0"]),
    );
    share.tell(DESTROY, 0, &[]);
    report.expect(
        share.init(),
        format_args!("no session after the end of one"),
    );
}

/// Inodes and handles that nobody gave out, and more given back than was given.
pub(crate) fn handles(report: &mut Report) {
    let Some((mut share, tree)) = mounted(report) else {
        return;
    };
    let Ok((file, handle)) = share.create(tree.rootfs, b"held") else {
        return report.wrong(format_args!("no file is made"));
    };
    for inode in [0, 999_999, 1 << 31, u64::from(u32::MAX), 1 << 63, u64::MAX] {
        refused(report, "getattr", share.ask(GETATTR, inode, &[&[0; 16]]));
        refused(report, "lookup", share.ask(LOOKUP, inode, &[b"marker\0"]));
        refused(report, "open", share.ask(OPEN, inode, &[&[0; 8]]));
        refused(report, "opendir", share.ask(OPENDIR, inode, &[&[0; 8]]));
        refused(
            report,
            "setattr",
            share.ask(SETATTR, inode, &[&attributes(1)]),
        );
        let parts: &[&[u8]] = &[&inode.to_le_bytes(), b"linked\0"];
        refused(report, "link", share.ask(LINK, tree.rootfs, parts));
        let parts: &[&[u8]] = &[&inode.to_le_bytes(), b"marker\0moved\0"];
        refused(report, "rename", share.ask(RENAME, tree.rootfs, parts));
    }
    for forged in (handle + 1..handle + 40).chain([1 << 32, 1 << 63, u64::MAX]) {
        refused(report, "read", share.read(file, forged, 0, 16));
        refused(report, "write", share.write(file, forged, 0, b"x", 1));
        refused(
            report,
            "readdir",
            share.ask(READDIR, ROOT, &[&write_body(forged, 0, 4096)]),
        );
        refused(
            report,
            "fallocate",
            share.ask(FALLOCATE, file, &[&write_body(forged, 0, 1)[..32]]),
        );
    }
    refused(
        report,
        "a file as a directory",
        share.ask(READDIR, file, &[&write_body(handle, 0, 64)]),
    );
    for (inode, count) in [
        (file, u64::MAX),
        (file, u64::MAX),
        (ROOT, u64::MAX),
        (0, 1),
        (77, 77),
    ] {
        report.tried();
        share.tell(FORGET, inode, &[&count.to_le_bytes()]);
    }
    for count in [1, 2, 1 << 16, 1 << 28, u32::MAX] {
        report.tried();
        let entry = bytes_of(&[ROOT as u32, 0, u32::MAX, u32::MAX]);
        share.tell(BATCH_FORGET, 0, &[&bytes_of(&[count, 0]), &entry]);
    }
    report.expect(
        Share::mounted().is_some(),
        format_args!("the share is not mounted again"),
    );
}

/// Offsets, sizes and lengths beyond all files and disks.
pub(crate) fn ranges(report: &mut Report) {
    let Some((mut share, tree)) = mounted(report) else {
        return;
    };
    let Ok((file, handle)) = share.create(tree.rootfs, b"ranges") else {
        return report.wrong(format_args!("no file is made"));
    };
    // What makes sense works.
    let written = share.write(file, handle, 3, b"some bytes", 10);
    report.expect(
        written.is_ok(),
        format_args!("an honest write: {written:?}"),
    );
    let read = share.read(file, handle, 0, 4096);
    report.expect(read == Ok(13), format_args!("an honest read: {read:?}"));
    for offset in [1 << 63, u64::MAX, u64::MAX - 4095] {
        refused(
            report,
            "write beyond",
            share.write(file, handle, offset, b"x", 1),
        );
        refused(report, "read beyond", share.read(file, handle, offset, 16));
    }
    for size in [2, 4097, 1 << 20, 1 << 31, u32::MAX] {
        report.tried();
        let _ = share.write(file, handle, 0, b"x", size);
        let _ = share.read(file, handle, 0, size);
    }
    // The whole disk and more: what the file system refuses is refused, what it grants is given back.
    for length in [1 << 40, 1 << 62, u64::MAX] {
        let body = [0, 0, 0, 0].map(u64::to_le_bytes);
        let [_, offset, _, mode] = body;
        let parts: &[&[u8]] = &[&handle.to_le_bytes(), &offset, &length.to_le_bytes(), &mode];
        refused(
            report,
            "fallocate of the whole disk",
            share.ask(FALLOCATE, file, parts),
        );
    }
    let empty = share.ask(SETATTR, file, &[&attributes(8)]);
    report.expect(
        empty.is_ok(),
        format_args!("truncation to nothing: {empty:?}"),
    );
    for mode in [0x40, 0x80, u32::MAX] {
        let parts: &[&[u8]] = &[
            &handle.to_le_bytes(),
            &[0; 8],
            &4096u64.to_le_bytes(),
            &bytes_of(&[mode, 0]),
        ];
        refused(
            report,
            "fallocate of no kind",
            share.ask(FALLOCATE, file, parts),
        );
    }
    copies(report, &mut share, tree, file, handle);
}

fn copies(report: &mut Report, share: &mut Share, tree: Tree, file: u64, handle: u64) {
    let _ = share.write(file, handle, 0, b"some bytes", 10);
    for (offset, length) in [
        (0, u64::MAX),
        (1 << 63, 1),
        (u64::MAX, u64::MAX),
        (5, 1 << 62),
    ] {
        for other in [file, tree.marker, 0, u64::MAX] {
            report.tried();
            let words = [handle, offset, other, handle, 0, length, 0].map(u64::to_le_bytes);
            let _ = share.ask(COPY_FILE_RANGE, file, &[words.as_flattened()]);
        }
    }
    let empty = share.ask(SETATTR, file, &[&attributes(8)]);
    report.expect(
        empty.is_ok(),
        format_args!("truncation after copies: {empty:?}"),
    );
}

/// Opens one file until there are no descriptors left; the other devices and a new session still have some.
pub(crate) fn descriptors(report: &mut Report) {
    let Some((mut share, tree)) = mounted(report) else {
        return;
    };
    let (opened, error) = open_many(&mut share);
    say!("descriptors: {opened} opened, then error {error}");
    report.expect(
        [ENFILE, EMFILE].contains(&error),
        format_args!("after {opened} files error {error}"),
    );
    report.expect(
        opened > 100 && opened <= DESCRIPTORS_MAX,
        format_args!("{opened} files are open"),
    );
    let more = share.lookup(tree.rootfs, b"bin").map(|entry| entry.mode);
    report.expect(more.is_err(), format_args!("a further inode: {more:?}"));
    for device in Device::all().filter(|device| device.slot != FS && queues(device.slot) > 0) {
        report.expect(
            device.works(),
            format_args!("device {} does not work without descriptors", device.slot),
        );
    }
    report.expect(
        Device::at(FS).is_some_and(Device::works),
        format_args!("the share does not work after a reset"),
    );
}

/// Many requests at a time; how many files were opened, and the error of the first that was not.
fn open_many(share: &mut Share) -> (u32, i32) {
    const BATCH: u16 = 128;
    const REQUEST: u32 = IN_HEADER as u32 + 8;
    let mut opened = 0;
    let mut live = Device { slot: FS }.bring_up(512);
    share.live = live;
    if !share.init() {
        return (0, SILENCE);
    }
    let Some(tree) = Tree::find(share) else {
        return (0, SILENCE);
    };
    live = share.live;
    while opened <= DESCRIPTORS_MAX {
        for index in 0..BATCH {
            let at = request_of(FS) + u64::from(index) * 64;
            cpu::fill(at, 0, 64);
            cpu::write32(at, REQUEST);
            cpu::write32(at + 4, OPEN);
            cpu::write64(at + 8, index.into());
            cpu::write64(at + 16, tree.marker);
            let request = Descriptor {
                address: at,
                length: REQUEST,
                flags: NEXT,
                next: index * 2 + 1,
            };
            live.rings[1].describe(index * 2, request);
            let address = answer_of(FS) + u64::from(index) * 64;
            let answer = Descriptor {
                address,
                length: 64,
                flags: WRITABLE,
                next: 0,
            };
            live.rings[1].describe(index * 2 + 1, answer);
            live.rings[1].offer(index * 2);
        }
        live.device.kick(1);
        for _ in 0..BATCH {
            if live.take(1).is_none() {
                return (opened, SILENCE);
            }
        }
        for index in 0..BATCH {
            let error = -cpu::read32(answer_of(FS) + u64::from(index) * 64 + 4).cast_signed();
            if error != 0 {
                share.live = live;
                return (opened, error);
            }
            opened += 1;
        }
    }
    (opened, SILENCE)
}

/// The order to write back a whole file system, again and again.
pub(crate) fn syncs(report: &mut Report) {
    let Some((mut share, tree)) = mounted(report) else {
        return;
    };
    let Ok((file, handle)) = share.create(tree.rootfs, b"dirty") else {
        return report.wrong(format_args!("no file is made"));
    };
    for count in 0..SYNCS {
        let offset = u64::from(count) * 4096;
        let written = share.write(file, handle, offset, &[b'd'; 4096], 4096);
        report.expect(written.is_ok(), format_args!("write {count}: {written:?}"));
        let read = share.read(file, handle, offset, 16);
        report.expect(read == Ok(16), format_args!("read {count}: {read:?}"));
        let inode = [ROOT, tree.rootfs, tree.volume, file][count as usize % 4];
        let _ = share.ask(SYNCFS, inode, &[&[0; 8]]);
        let read = share.read(file, handle, 0, 16);
        report.expect(read == Ok(16), format_args!("read after {count}: {read:?}"));
    }
}
