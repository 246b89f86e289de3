//! The levels of the share that are the supervisor's: the root, a container's directory, and the directory of its volumes. Nothing of a guest's
//! may change them. And a volume that is read-only.
//!
//! ```text
//!   /                    only the supervisor
//!   /<id>                only the supervisor
//!   /<id>/rootfs         the container's: holds `marker`
//!   /<id>/mounts         only the supervisor
//!   /<id>/mounts/0       a directory of the host, holds `file`
//!   /<id>/mounts/1       one that is read-only, holds `file`
//!   /<id>/mounts/2       one file, not empty
//! ```

use crate::cpu;
use crate::log::{Report, say};
use crate::share::{
    Answer, CREATE, FALLOCATE, LINK, MKDIR, MKNOD, O_CREAT, O_DIRECTORY, O_EXCL, O_RDWR, O_TRUNC,
    OPEN, REMOVEXATTR, RENAME, RENAME2, RMDIR, ROOT, S_IFBLK, S_IFCHR, S_IFIFO, S_IFREG, S_IFSOCK,
    SETATTR, SETXATTR, SILENCE, SYMLINK, Share, TMPFILE, UNLINK, WRITE, bytes_of, write_body,
};

/// How often it is looked whether the supervisor has put the container's files there.
const LOOKS_MAX: u32 = 20_000;

/// Inodes of a container's part of the share.
#[derive(Clone, Copy)]
pub(crate) struct Tree {
    pub(crate) container: u64,
    pub(crate) rootfs: u64,
    pub(crate) marker: u64,
    pub(crate) mounts: u64,
    pub(crate) volume: u64,
    pub(crate) read_only: u64,
    name: [u8; 256],
    name_length: usize,
}

impl Tree {
    /// Waits for the container's files.
    pub(crate) fn find(share: &mut Share) -> Option<Self> {
        for _ in 0..LOOKS_MAX {
            if let Some(tree) = Self::look(share) {
                return Some(tree);
            }
            (0..20).for_each(|_| cpu::relax());
        }
        None
    }

    fn look(share: &mut Share) -> Option<Self> {
        let mut name = [0; 256];
        let name_length = share.first_name(ROOT, &mut name)?;
        let container = share.lookup(ROOT, &name[..name_length]).ok()?.inode;
        let mounts = share.lookup(container, b"mounts").ok()?.inode;
        // The last one to be mounted: until then an empty file is there.
        share
            .lookup(mounts, b"2")
            .ok()
            .filter(|file| file.size > 0)?;
        let rootfs = share.lookup(container, b"rootfs").ok()?.inode;
        Some(Self {
            container,
            rootfs,
            marker: share.lookup(rootfs, b"marker").ok()?.inode,
            mounts,
            volume: share.lookup(mounts, b"0").ok()?.inode,
            read_only: share.lookup(mounts, b"1").ok()?.inode,
            name,
            name_length,
        })
    }
}

/// The share and the container's part of it, or a word that it is not there.
pub(crate) fn mounted(report: &mut Report) -> Option<(Share, Tree)> {
    let Some(mut share) = Share::mounted() else {
        report.wrong(format_args!("the share is not mounted"));
        return None;
    };
    let Some(tree) = Tree::find(&mut share) else {
        report.wrong(format_args!("the container's files do not come"));
        return None;
    };
    Some((share, tree))
}

/// What was done where must have failed.
fn refused(report: &mut Report, level: &str, what: &str, answer: Answer) {
    match answer {
        Err(SILENCE) => report.expect(false, format_args!("{what} in {level} was not answered")),
        Err(_) => report.tried(),
        Ok(_) => report.expect(false, format_args!("{what} in {level} was done")),
    }
}

/// Every operation that changes something, at each level.
pub(crate) fn all(report: &mut Report) {
    let Some((mut share, tree)) = mounted(report) else {
        return;
    };
    let id = &tree.name[..tree.name_length];
    let levels: [(&str, u64, &[u8]); 4] = [
        ("the volumes' directory", tree.mounts, b"0"),
        ("the volumes' directory", tree.mounts, b"2"),
        ("the container's directory", tree.container, b"mounts"),
        ("the root", ROOT, id),
    ];
    for (level, inode, victim) in levels {
        let mut at = Level {
            report,
            share: &mut share,
            tree,
            level,
            inode,
        };
        at.change_itself();
        at.make();
        at.link_and_rename(victim);
        at.remove(victim);
    }
    let mut at = Level {
        report,
        share: &mut share,
        tree,
        level: "the read-only volume",
        inode: tree.read_only,
    };
    at.change_itself();
    at.make();
    at.link_and_rename(b"file");
    at.remove(b"file");
    at.open_file(b"file");
    let is_whole = Share::mounted().is_some_and(|mut share| Tree::look(&mut share).is_some());
    report.expect(
        is_whole,
        format_args!("the container's files are not where they were"),
    );
    say!("levels: inode of the rootfs is {}", tree.rootfs);
}

/// One level under attack.
struct Level<'a> {
    report: &'a mut Report,
    share: &'a mut Share,
    tree: Tree,
    level: &'static str,
    inode: u64,
}

impl Level<'_> {
    fn refused(&mut self, what: &str, op: u32, parts: &[&[u8]]) {
        let answer = self.share.ask(op, self.inode, parts);
        refused(self.report, self.level, what, answer);
    }

    /// The directory's own mode, owner, times, attributes, and contents.
    fn change_itself(&mut self) {
        for (what, valid) in [
            ("setattr of the mode", 1),
            ("setattr of the owner", 2 | 4),
            ("setattr of the size", 8),
            ("setattr of the times", 16 | 32),
            ("setattr of the times to now", 16 | 32 | 128 | 256),
            ("setattr of all", 0xffff),
        ] {
            let body = attributes(valid);
            self.refused(what, SETATTR, &[&body]);
        }
        for name in [
            &b"user.x"[..],
            b"trusted.x",
            b"security.capability",
            b"security.x",
        ] {
            self.refused("setxattr", SETXATTR, &[&bytes_of(&[1, 0]), name, b"\0v"]);
            self.refused("removexattr", REMOVEXATTR, &[name, b"\0"]);
        }
        let acl = [2, 0, 0, 0, 1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff];
        let size = bytes_of(&[acl.len() as u32, 0]);
        for name in [
            &b"system.posix_acl_access\0"[..],
            b"system.posix_acl_default\0",
        ] {
            self.refused("setxattr of an acl", SETXATTR, &[&size, name, &acl]);
        }
        for flags in [O_RDWR, O_TRUNC, O_CREAT, O_RDWR | O_DIRECTORY, 0o2020_0002] {
            self.refused("open to write", OPEN, &[&bytes_of(&[flags, 0])]);
        }
        self.refused("write", WRITE, &[&write_body(0, 0, 1), b"x"]);
        self.refused(
            "fallocate",
            FALLOCATE,
            &[&[0; 16], &bytes_of(&[4096, 0, 0, 0])],
        );
        self.refused(
            "tmpfile",
            TMPFILE,
            &[&bytes_of(&[O_RDWR, 0o644, 0, 0]), b"t\0"],
        );
    }

    /// New files of every kind.
    fn make(&mut self) {
        for flags in [
            O_RDWR | O_CREAT,
            O_RDWR | O_CREAT | O_EXCL,
            O_CREAT | O_TRUNC,
        ] {
            let body = bytes_of(&[flags, 0o6755, 0, 0]);
            self.refused("create", CREATE, &[&body, b"planted\0"]);
        }
        self.refused(
            "mkdir",
            MKDIR,
            &[&bytes_of(&[0o755, 0]), b"planted-directory\0"],
        );
        for kind in [S_IFREG, S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK] {
            let body = bytes_of(&[kind | 0o666, 0x103, 0, 0]);
            self.refused("mknod", MKNOD, &[&body, b"planted-node\0"]);
        }
        for target in [&b"/etc"[..], b"../../..", b"rootfs"] {
            self.refused("symlink", SYMLINK, &[b"planted-link\0", target, b"\0"]);
        }
    }

    /// Links to files elsewhere, and names that move in, out and about.
    fn link_and_rename(&mut self, victim: &[u8]) {
        let (marker, rootfs, here) = (self.tree.marker, self.tree.rootfs, self.inode);
        self.refused(
            "link",
            LINK,
            &[&marker.to_le_bytes(), b"planted-hard-link\0"],
        );
        let within = here.to_le_bytes();
        let moved = b"\0moved\0";
        self.refused("rename within", RENAME, &[&within, victim, moved]);
        self.refused(
            "rename out",
            RENAME,
            &[&rootfs.to_le_bytes(), victim, moved],
        );
        for flags in [0u64, 1, 2, 4] {
            let flags = flags.to_le_bytes();
            self.refused(
                "rename2 within",
                RENAME2,
                &[&within, &flags, victim, b"\0rootfs\0"],
            );
        }
        let answer = self
            .share
            .ask(RENAME, rootfs, &[&within, b"marker\0planted\0"]);
        refused(self.report, self.level, "rename into it", answer);
        let exchange = 2u64.to_le_bytes();
        let parts: &[&[u8]] = &[&within, &exchange, b"marker\0", victim, b"\0"];
        let answer = self.share.ask(RENAME2, rootfs, parts);
        refused(self.report, self.level, "exchange with it", answer);
    }

    /// Names that are there.
    fn remove(&mut self, victim: &[u8]) {
        self.refused("unlink", UNLINK, &[victim, b"\0"]);
        self.refused("rmdir", RMDIR, &[victim, b"\0"]);
    }

    /// A file in it, opened and changed.
    fn open_file(&mut self, name: &[u8]) {
        let Ok(file) = self.share.lookup(self.inode, name) else {
            return self.report.wrong(format_args!("no file in {}", self.level));
        };
        for flags in [1, O_RDWR, O_TRUNC, O_RDWR | O_TRUNC] {
            let answer = self.share.ask(OPEN, file.inode, &[&bytes_of(&[flags, 0])]);
            refused(self.report, self.level, "open of a file to write", answer);
        }
        let answer = self.share.ask(SETATTR, file.inode, &[&attributes(8)]);
        refused(self.report, self.level, "truncation of a file", answer);
    }
}

/// `struct fuse_setattr_in`.
pub(crate) fn attributes(valid: u32) -> [u8; 88] {
    let mut body = [0; 88];
    body[..4].copy_from_slice(&valid.to_le_bytes());
    body[68..72].copy_from_slice(&0o777u32.to_le_bytes());
    body[76..80].copy_from_slice(&1000u32.to_le_bytes());
    body[80..84].copy_from_slice(&1000u32.to_le_bytes());
    body
}
