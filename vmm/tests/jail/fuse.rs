//! A FUSE client of a file server in the jail, by the device's queues.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use husk_vmm::seccomp;
use vmm_virtio::Confine;
use vmm_virtio::fs::{Fs, FsConfig};
use vmm_virtio::testing::FakeDriver;

pub(super) const ROOT: u64 = 1;
const REQUEST: usize = 1;
const HIPRIO: usize = 0;
const ROOM: u32 = 0x4000;

/// Operations by their numbers (`linux/fuse.h`).
pub(super) mod operation {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const GETLK: u32 = 31;
    pub(crate) const SETLK: u32 = 32;
    pub(crate) const SETLKW: u32 = 33;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const SYNCFS: u32 = 50;
    pub(crate) const TMPFILE: u32 = 51;
}

/// A client in the middle of a session with a server whose threads have their real filters.
pub(super) struct Client {
    driver: FakeDriver,
    unique: u64,
    uid: u32,
}

impl Client {
    /// On a thread in the jail.
    pub(super) fn new(proc_self_fd: OwnedFd) -> Self {
        let fs = Fs::new(FsConfig {
            tag: "husk".to_owned(),
            root: "/".to_owned(),
            proc_self_fd,
        })
        .unwrap();
        let mut driver = FakeDriver::confined(Box::new(fs), Confine::new(seccomp::load));
        driver.bring_up();
        let mut client = Self {
            driver,
            unique: 0,
            uid: 0,
        };
        // Of a Linux guest: DONT_MASK, HANDLE_KILLPRIV_V2, POSIX_ACL, SUBMOUNTS, INIT_EXT,
        // SETXATTR_EXT, AUTO_INVAL_DATA, READDIRPLUS.
        let flags: u32 =
            1 << 6 | 1 << 28 | 1 << 20 | 1 << 27 | 1 << 30 | 1 << 29 | 1 << 12 | 1 << 13;
        // CREATE_SUPP_GROUP.
        let more: u32 = 1 << (34 - 32);
        let mut body = words(&[7, 38, 1 << 16, flags, more]);
        body.extend([0; 44]);
        client.ask(operation::INIT, 0, &body).unwrap();
        client
    }

    /// Requests from now on are of this user and group.
    pub(super) fn act_as(&mut self, uid: u32) {
        self.uid = uid;
    }

    fn message(&mut self, operation: u32, inode: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 1;
        let length = u32::try_from(40 + body.len()).unwrap();
        let mut message = words(&[length, operation]);
        message.extend(self.unique.to_le_bytes());
        message.extend(inode.to_le_bytes());
        message.extend(words(&[self.uid, self.uid, 1, 0]));
        message.extend(body);
        message
    }

    /// What follows the header of the answer, or the error.
    pub(super) fn ask(&mut self, operation: u32, inode: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let message = self.message(operation, inode, body);
        let answer = self.driver.exchange(REQUEST, &message, ROOM);
        match i32::from_le_bytes(answer[4..8].try_into().unwrap()) {
            0 => Ok(answer[16..].to_vec()),
            error => Err(-error),
        }
    }

    /// Sends what is not answered.
    pub(super) fn tell(&mut self, operation: u32, inode: u64, body: &[u8]) {
        let message = self.message(operation, inode, body);
        assert_eq!(self.driver.exchange(HIPRIO, &message, 0), b"");
    }

    /// The inode of a name.
    pub(super) fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        self.ask(operation::LOOKUP, parent, &named(&[], name))
            .map(|entry| u64_at(&entry, 0))
    }

    /// Looks a path below the root up.
    pub(super) fn walk(&mut self, path: &str) -> u64 {
        path.split('/')
            .fold(ROOT, |inode, name| self.lookup(inode, name).unwrap())
    }

    /// Creates a file; its inode and a handle to it.
    pub(super) fn create(&mut self, parent: u64, name: &str) -> Result<(u64, u64), i32> {
        let flags = libc::O_RDWR.cast_unsigned();
        let body = named(&words(&[flags, libc::S_IFREG | 0o644, 0, 0]), name);
        self.ask(operation::CREATE, parent, &body)
            .map(|reply| (u64_at(&reply, 0), u64_at(&reply, 128)))
    }

    /// Whether the server still answers.
    pub(super) fn is_alive(&mut self) -> bool {
        self.ask(operation::GETATTR, ROOT, &[0; 16]).is_ok()
    }

    /// Asks for each of the operations; the errors of those that failed.
    pub(super) fn errors(
        &mut self,
        inode: u64,
        operations: &[(&'static str, u32, Vec<u8>)],
    ) -> BTreeMap<&'static str, i32> {
        let mut errors = BTreeMap::new();
        for (name, operation, body) in operations {
            if let Err(error) = self.ask(*operation, inode, body) {
                errors.insert(*name, error);
            }
        }
        errors
    }
}

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

/// A body and a name after it.
pub(super) fn named(body: &[u8], name: &str) -> Vec<u8> {
    [body, name.as_bytes(), b"\0"].concat()
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}
