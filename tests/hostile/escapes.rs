//! Ways out of the share: through links, and through nodes that are devices of the host.

use crate::levels::{attributes, mounted};
use crate::log::Report;
use crate::share::{
    CREATE, LOOKUP, MKDIR, MKNOD, O_CREAT, O_RDONLY, O_RDWR, O_TRUNC, OPEN, OPENDIR, READLINK,
    S_IFBLK, S_IFCHR, S_IFIFO, S_IFSOCK, SETATTR, SETXATTR, SILENCE, SYMLINK, Share, UNLINK,
    bytes_of,
};

/// Where links lead: nowhere a guest may come to.
const TARGETS: [&[u8]; 8] = [
    b"/",
    b"/etc",
    b"/etc/passwd",
    b"../../../../../../etc/passwd",
    b"../beside/file",
    b"/proc/self/root",
    b"/proc/1/root/etc/passwd",
    b"/dev/kvm",
];

fn refused(report: &mut Report, what: &str, answer: crate::share::Answer) {
    let is_refused = matches!(answer, Err(error) if error != SILENCE);
    report.expect(is_refused, format_args!("{what}: {answer:?}"));
}

/// Links in a root file system: the guest's kernel follows them, the host never does.
pub(crate) fn links(report: &mut Report) {
    let Some((mut share, tree)) = mounted(report) else {
        return;
    };
    for (parent, target) in TARGETS
        .iter()
        .flat_map(|to| [(tree.rootfs, to), (tree.volume, to)])
    {
        // Of an earlier round.
        let _ = share.ask(UNLINK, parent, &[b"link\0"]);
        if let Err(error) = share.ask(SYMLINK, parent, &[b"link\0", target, b"\0"]) {
            report.wrong(format_args!("a link is not made: {error}"));
            continue;
        }
        let link = share.entry().inode;
        let length = share.ask(READLINK, link, &[]);
        report.expect(
            length == Ok(target.len() as u32),
            format_args!("readlink: {length:?}"),
        );
        for name in [&b"passwd"[..], b"etc", b"root", b"file"] {
            refused(
                report,
                "lookup below a link",
                share.ask(LOOKUP, link, &[name, b"\0"]),
            );
            let body = bytes_of(&[O_RDWR | O_CREAT, 0o644, 0, 0]);
            refused(
                report,
                "create below a link",
                share.ask(CREATE, link, &[&body, name, b"\0"]),
            );
            let body = bytes_of(&[0o755, 0]);
            refused(
                report,
                "mkdir below a link",
                share.ask(MKDIR, link, &[&body, name, b"\0"]),
            );
        }
        for flags in [O_RDONLY, O_RDWR, O_TRUNC, O_RDWR | O_TRUNC, 1] {
            refused(
                report,
                "open of a link",
                share.ask(OPEN, link, &[&bytes_of(&[flags, 0])]),
            );
        }
        refused(
            report,
            "opendir of a link",
            share.ask(OPENDIR, link, &[&[0; 8]]),
        );
        refused(
            report,
            "truncation of a link",
            share.ask(SETATTR, link, &[&attributes(8)]),
        );
        // It may have a mode of its own, where the file system has such.
        report.tried();
        let _ = share.ask(SETATTR, link, &[&attributes(1)]);
        let body = bytes_of(&[1, 0]);
        let named = share.ask(SETXATTR, link, &[&body, b"user.x\0v"]);
        refused(report, "attribute of a link", named);
        // A file of this name is the link, and is not followed.
        for flags in [O_RDWR | O_CREAT, O_RDWR | O_CREAT | O_TRUNC] {
            let body = bytes_of(&[flags, 0o644, 0, 0]);
            let made = share.ask(CREATE, parent, &[&body, b"link\0"]);
            refused(report, "create where a link is", made);
        }
    }
}

/// Nodes of devices, pipes and sockets: they may be made, and are not opened here.
pub(crate) fn nodes(report: &mut Report) {
    const DEVICES: [(u32, u32, u32); 9] = [
        (S_IFCHR, 1, 1),
        (S_IFCHR, 1, 3),
        (S_IFCHR, 5, 1),
        (S_IFCHR, 10, 232),
        (S_IFBLK, 7, 0),
        (S_IFBLK, 8, 0),
        (S_IFBLK, 254, 0),
        (S_IFIFO, 0, 0),
        (S_IFSOCK, 0, 0),
    ];
    let Some((mut share, tree)) = mounted(report) else {
        return;
    };
    for (kind, major, minor) in DEVICES {
        for parent in [tree.rootfs, tree.volume] {
            let _ = share.ask(UNLINK, parent, &[b"node\0"]);
            let body = bytes_of(&[kind | 0o666, major << 8 | minor, 0, 0]);
            let made = share.ask(MKNOD, parent, &[&body, b"node\0"]);
            report.expect(
                made.is_ok(),
                format_args!("mknod {kind:o} {major}:{minor}: {made:?}"),
            );
            if made.is_err() {
                continue;
            }
            let node = share.entry().inode;
            open_every_way(report, &mut share, parent, node);
            let gone = share.ask(UNLINK, parent, &[b"node\0"]);
            report.expect(gone.is_ok(), format_args!("unlink of a node: {gone:?}"));
        }
    }
}

fn open_every_way(report: &mut Report, share: &mut Share, parent: u64, node: u64) {
    for flags in [
        O_RDONLY,
        1,
        O_RDWR,
        O_RDWR | O_TRUNC,
        0o4000,
        0o4000 | O_RDWR,
    ] {
        let opened = share.ask(OPEN, node, &[&bytes_of(&[flags, 0])]);
        refused(report, "open of a node", opened);
        let body = bytes_of(&[flags | O_CREAT, 0o644, 0, 0]);
        let made = share.ask(CREATE, parent, &[&body, b"node\0"]);
        refused(report, "create where a node is", made);
    }
    refused(
        report,
        "truncation of a node",
        share.ask(SETATTR, node, &[&attributes(8)]),
    );
    refused(
        report,
        "opendir of a node",
        share.ask(OPENDIR, node, &[&[0; 8]]),
    );
}
