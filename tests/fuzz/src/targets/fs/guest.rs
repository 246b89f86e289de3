//! A guest that speaks FUSE, well or badly. The wire's structures are written out by hand, as
//! whoever takes a guest over would (`include/uapi/linux/fuse.h`).

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use vmm_virtio::fs::fuzzing::FileServer;

use crate::input::Input;

const ROOT: u64 = 1;
const HEADER_BYTES: usize = 40;
const ANSWER_HEADER_BYTES: usize = 16;
const ROOM: usize = 0x2_1000;

const LOOKUP: u32 = 1;
const SETATTR: u32 = 4;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const SETXATTR: u32 = 21;
const GETXATTR: u32 = 22;
const LISTXATTR: u32 = 23;
const REMOVEXATTR: u32 = 24;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const GETLK: u32 = 31;
const SETLK: u32 = 32;
const SETLKW: u32 = 33;
const CREATE: u32 = 35;
const FALLOCATE: u32 = 43;
const READDIRPLUS: u32 = 44;
const RENAME2: u32 = 45;
const LSEEK: u32 = 46;
const COPY_FILE_RANGE: u32 = 47;
const TMPFILE: u32 = 51;

/// Those with a body of their own below; the others are sent with whatever the input has.
const OPERATIONS: &[u32] = &[
    LOOKUP,
    LOOKUP,
    LOOKUP,
    SETATTR,
    SYMLINK,
    MKNOD,
    MKDIR,
    UNLINK,
    RMDIR,
    RENAME,
    LINK,
    OPEN,
    OPEN,
    READ,
    WRITE,
    RELEASE,
    SETXATTR,
    GETXATTR,
    LISTXATTR,
    REMOVEXATTR,
    OPENDIR,
    READDIR,
    CREATE,
    FALLOCATE,
    READDIRPLUS,
    RENAME2,
    LSEEK,
    COPY_FILE_RANGE,
    TMPFILE,
    GETLK,
    SETLK,
    SETLKW,
];
const FORGET: u32 = 2;
const BATCH_FORGET: u32 = 42;
const SYNCFS: u32 = 50;
const FLUSH: u32 = 25;
/// FORGET, GETATTR, READLINK, STATFS, FSYNC, FLUSH, INIT, RELEASEDIR, FSYNCDIR, ACCESS, INTERRUPT,
/// DESTROY, BATCH_FORGET, SYNCFS, and some that nobody knows.
const OTHERS: &[u32] = &[
    FORGET,
    3,
    5,
    17,
    20,
    FLUSH,
    INIT,
    29,
    30,
    34,
    36,
    38,
    BATCH_FORGET,
    SYNCFS,
    52,
    37,
    4096,
];

/// What a Linux guest offers: submounts, extension, ACLs, umask, extended setxattr,
/// kill-privileges, many pages, truncating opens, revalidation, supplementary group, cached links,
/// locks of both kinds.
const OPTIONS: u64 = 1 << 27
    | 1 << 30
    | 1 << 20
    | 1 << 6
    | 1 << 29
    | 1 << 28
    | 1 << 22
    | 1 << 3
    | 1 << 12
    | 1 << 34
    | 1 << 23
    | 1 << 1
    | 1 << 10;

const NAMES: &[&[u8]] = &[
    b"c", b"d", b"rootfs", b"mounts", b"0", b"1", b"dir", b"file", b"up", b"away", b"fds", b"new",
    b"other",
];
/// What no honest kernel sends.
const BAD_NAMES: &[&[u8]] = &[
    b"..",
    b".",
    b"",
    b"/",
    b"../victim",
    b"../../victim",
    b"../../../victim",
    b"../../../beside",
    b"up/victim",
    b"away/victim",
    b"/etc/passwd",
    b"dir/../../../../victim",
    b"...",
    &[b'x'; 255],
    &[b'x'; 256],
];
const XATTRS: &[&[u8]] = &[
    b"user.a",
    b"user.b",
    b"trusted.overlay.opaque",
    b"security.capability",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"security.selinux",
    b"user.",
    b"",
    b"trusted.a",
];

#[derive(Debug)]
pub(super) struct Guest {
    outside: Vec<u8>,
    /// What the server has given out.
    inodes: Vec<u64>,
    handles: Vec<u64>,
    unique: u64,
    /// Each SYNCFS after the first waits.
    synced: bool,
}

impl Guest {
    /// A guest that knows where on the host it is served from.
    pub(super) fn new(outside: &Path) -> Self {
        Self {
            outside: outside.as_os_str().as_bytes().to_vec(),
            inodes: vec![ROOT],
            handles: vec![0],
            unique: 0,
            synced: false,
        }
    }

    /// Begins a session, which must be had.
    pub(super) fn mount(&mut self, server: &mut FileServer) {
        let (low, high) = (OPTIONS & 0xffff_ffff, OPTIONS >> 32);
        let words = [
            7u32,
            41,
            128 << 10,
            u32::try_from(low).unwrap(),
            u32::try_from(high).unwrap(),
        ];
        let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        body.extend([0; 44]);
        let message = self.message(INIT, 0, &body);
        let answer = server.answer(&message, ROOM).unwrap();
        assert!(
            answer.len() > ANSWER_HEADER_BYTES && server.in_session(),
            "no session: {answer:?}"
        );
    }

    /// One message, honest for the most part.
    pub(super) fn step(&mut self, input: &mut Input<'_>, server: &mut FileServer) {
        let kind = input.u8();
        let (operation, inode, body) = match kind % 8 {
            0 => {
                let operation = input.of(OTHERS);
                let inode = self.inode(input);
                (operation, inode, self.other_body(operation, input))
            }
            1 => {
                let operation = u32::from(input.u8() % 56);
                let length = usize::from(input.u8());
                (operation, input.u64() % 64, input.bytes(length).to_vec())
            }
            _ => {
                let operation = input.of(OPERATIONS);
                let inode = self.inode(input);
                (operation, inode, self.body(operation, input))
            }
        };
        if operation == SYNCFS && std::mem::replace(&mut self.synced, true) {
            return;
        }
        let mut message = self.message(operation, inode, &body);
        if kind & 0x80 != 0 {
            distort(&mut message, input);
        }
        let room = if kind & 0x40 == 0 {
            ROOM
        } else {
            input.of(&[0, 15, 16, 17, 100, 200])
        };
        let answer = server.answer(&message, room).unwrap();
        self.learn(operation, &message, &answer, room);
    }

    fn message(&mut self, operation: u32, inode: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 1;
        let length = u32::try_from(HEADER_BYTES + body.len()).unwrap();
        let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
        message.extend(length.to_le_bytes());
        message.extend(operation.to_le_bytes());
        message.extend(self.unique.to_le_bytes());
        message.extend(inode.to_le_bytes());
        // Owner, group, process, length of extensions: root's, of process 1, none.
        message.extend([0; 8]);
        message.extend(1u32.to_le_bytes());
        message.extend([0; 4]);
        message.extend(body);
        message
    }

    /// Takes note of inodes and handles, and looks at the answer's header.
    fn learn(&mut self, operation: u32, message: &[u8], answer: &[u8], room: usize) {
        assert!(answer.len() <= room, "an answer longer than its room");
        if answer.is_empty() {
            return;
        }
        assert!(answer.len() >= ANSWER_HEADER_BYTES, "{answer:?}");
        let error = i32::from_le_bytes(answer[4..8].try_into().unwrap());
        assert!((-4095..=0).contains(&error), "no error of Linux's: {error}");
        assert_eq!(
            answer[8..16],
            message[8..16],
            "an answer to another request"
        );
        let word = |at: usize| Some(u64::from_le_bytes(answer.get(at..at + 8)?.try_into().ok()?));
        let (inode, handle) = match operation {
            LOOKUP | SYMLINK | MKNOD | MKDIR | LINK => (word(16), None),
            CREATE | TMPFILE => (word(16), word(16 + 128)),
            OPEN | OPENDIR => (None, word(16)),
            _ => (None, None),
        };
        self.inodes
            .extend(inode.filter(|inode| error == 0 && *inode != 0));
        self.handles.extend(handle.filter(|_| error == 0));
    }

    fn inode(&self, input: &mut Input<'_>) -> u64 {
        match input.u8() {
            0..250 => self.inodes[input.below(self.inodes.len())],
            _ => input.u64(),
        }
    }

    fn handle(&self, input: &mut Input<'_>) -> u64 {
        match input.u8() {
            0..250 => self.handles[input.below(self.handles.len())],
            _ => input.u64(),
        }
    }

    /// A name with its end.
    fn name(&self, input: &mut Input<'_>) -> Vec<u8> {
        let mut name = match input.u8() {
            0..200 => input.of(NAMES).to_vec(),
            200..232 => input.of(BAD_NAMES).to_vec(),
            232..240 => [&self.outside[..], b"/victim"].concat(),
            _ => {
                let length = usize::from(input.u8() % 32);
                input.bytes(length).to_vec()
            }
        };
        name.push(0);
        name
    }

    /// Where a link leads.
    fn target(&self, input: &mut Input<'_>) -> Vec<u8> {
        let target: &[u8] = match input.u8() % 6 {
            0 => b"../../victim",
            1 => b"../../../victim",
            2 => b"/proc/self/root/etc",
            3 => b"/proc/self/fd/0",
            4 => return [&self.outside[..], b"/victim\0"].concat(),
            _ => return self.name(input),
        };
        [target, b"\0"].concat()
    }

    fn body(&self, operation: u32, input: &mut Input<'_>) -> Vec<u8> {
        let body = Body::default();
        match operation {
            LOOKUP | UNLINK | RMDIR => body.put(&self.name(input)),
            SYMLINK => body.put(&self.name(input)).put(&self.target(input)),
            MKNOD => {
                let mode = input.of(&[
                    0o100_644u32,
                    0o020_666,
                    0o060_666,
                    0o010_666,
                    0o140_666,
                    0o104_755,
                    0o040_755,
                ]);
                let device = input.of(&[0x103u32, 0x800, 0]);
                body.word(mode)
                    .word(device)
                    .word(0)
                    .word(0)
                    .put(&self.name(input))
            }
            MKDIR => body
                .word(input.of(&[0o755u32, 0o7777, 0]))
                .word(0)
                .put(&self.name(input)),
            RENAME => body
                .long(self.inode(input))
                .put(&self.name(input))
                .put(&self.name(input)),
            RENAME2 => {
                let body = body
                    .long(self.inode(input))
                    .word(input.of(&[0u32, 1, 2, 4, 7]))
                    .word(0);
                body.put(&self.name(input)).put(&self.name(input))
            }
            LINK => body.long(self.inode(input)).put(&self.name(input)),
            OPEN | OPENDIR => body.word(flags(input)).word(u32::from(input.u8() & 1)),
            CREATE | TMPFILE => {
                let body = body
                    .word(flags(input))
                    .word(input.of(&[0o644u32, 0o4755, 0]))
                    .word(0);
                body.word(u32::from(input.u8() & 1)).put(&self.name(input))
            }
            READ | READDIR | READDIRPLUS => {
                let body = body.long(self.handle(input)).long(offset(input));
                body.word(input.of(&[4096u32, 0, 1, 0x2_0000, u32::MAX]))
                    .word(0)
                    .long(0)
                    .long(0)
            }
            WRITE => {
                let length = input.of(&[8u32, 0, 1, 4096, u32::MAX]);
                let body = body
                    .long(self.handle(input))
                    .long(offset(input))
                    .word(length);
                let written = usize::try_from(length.min(4096)).unwrap();
                body.word(u32::from(input.u8()))
                    .long(0)
                    .word(0)
                    .word(0)
                    .put(&vec![7; written])
            }
            _ => self.rare_body(body, operation, input),
        }
        .0
    }

    fn rare_body(&self, body: Body, operation: u32, input: &mut Input<'_>) -> Body {
        match operation {
            SETATTR => {
                let body = body
                    .word(u32::from(input.u16()))
                    .word(0)
                    .long(self.handle(input));
                let body = body
                    .long(input.of(&[0u64, 4096, u64::MAX, 1 << 40]))
                    .long(0)
                    .long(input.u64())
                    .long(1)
                    .long(1);
                let body = body
                    .word(5)
                    .word(5)
                    .word(5)
                    .word(input.of(&[0o644u32, 0o7777, 0, u32::MAX]))
                    .word(0);
                body.word(input.of(&[0u32, 1000, u32::MAX]))
                    .word(input.of(&[0u32, 1000, u32::MAX]))
                    .word(0)
            }
            SETXATTR => {
                let length = usize::from(input.u8() % 64);
                let value = input.bytes(length);
                let body = body
                    .word(u32::try_from(value.len()).unwrap())
                    .word(u32::from(input.u8() % 3))
                    .word(1)
                    .word(0);
                body.put(input.of(XATTRS)).put(b"\0").put(value)
            }
            GETXATTR => body
                .word(input.of(&[0u32, 4096, 1, u32::MAX]))
                .word(0)
                .put(input.of(XATTRS))
                .put(b"\0"),
            LISTXATTR => body.word(input.of(&[0u32, 4096, 1, u32::MAX])).word(0),
            REMOVEXATTR => body.put(input.of(XATTRS)).put(b"\0"),
            RELEASE => body
                .long(self.handle(input))
                .word(0)
                .word(u32::from(input.u8() & 3))
                .long(0),
            FALLOCATE => {
                let body = body.long(self.handle(input)).long(offset(input));
                body.long(input.of(&[4096u64, 0, u64::MAX, 1 << 62]))
                    .word(u32::from(input.u8()))
                    .word(0)
            }
            GETLK | SETLK | SETLKW => {
                let body = body.long(self.handle(input)).long(owner(input));
                let body = body.long(offset(input)).long(offset(input));
                body.word(input.of(&[0u32, 1, 2, 3]))
                    .word(1)
                    .word(input.of(&[0u32, 0, 1, u32::MAX]))
                    .word(0)
            }
            LSEEK => body
                .long(self.handle(input))
                .long(offset(input))
                .word(u32::from(input.u8() % 6))
                .word(0),
            _ => {
                let body = body
                    .long(self.handle(input))
                    .long(offset(input))
                    .long(self.inode(input));
                body.long(self.handle(input))
                    .long(offset(input))
                    .long(input.of(&[8u64, 0, u64::MAX]))
                    .long(0)
            }
        }
    }

    fn other_body(&mut self, operation: u32, input: &mut Input<'_>) -> Vec<u8> {
        let count = input.of(&[1u64, 2, u64::MAX, 0]);
        match operation {
            FORGET => Body::default().long(count).0,
            BATCH_FORGET => {
                let claimed = input.of(&[1u32, 2, 0, 1 << 28, u32::MAX]);
                Body::default()
                    .word(claimed)
                    .word(0)
                    .long(self.inode(input))
                    .long(count)
                    .0
            }
            INIT => {
                let body = Body::default()
                    .word(input.of(&[7u32, 8, 0]))
                    .word(input.of(&[41u32, 27, 0]));
                body.word(0)
                    .word(input.u32())
                    .word(input.u32())
                    .put(&[0; 44])
                    .0
            }
            FLUSH => {
                Body::default()
                    .long(self.handle(input))
                    .long(0)
                    .long(owner(input))
                    .0
            }
            _ => {
                Body::default()
                    .long(self.handle(input))
                    .long(input.u64())
                    .long(0)
                    .0
            }
        }
    }
}

/// A body that grows at its end.
#[derive(Debug, Default)]
struct Body(Vec<u8>);

impl Body {
    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn word(self, word: u32) -> Self {
        self.put(&word.to_le_bytes())
    }

    fn long(self, long: u64) -> Self {
        self.put(&long.to_le_bytes())
    }
}

/// How a file is opened: access, creation, truncation, appending, direct, directory, no following,
/// path only, temporary, noatime.
fn flags(input: &mut Input<'_>) -> u32 {
    let access = u32::from(input.u8() & 3);
    access
        | input.of(&[
            0u32,
            0,
            0,
            0o100,
            0o1000,
            0o2000,
            0o40000,
            0o200_000,
            0o400_000,
            0o10_000_000,
            0o20_200_000,
            0o1_000_000,
        ])
}

/// Whose a lock is.
fn owner(input: &mut Input<'_>) -> u64 {
    input.of(&[1u64, 2, 3, u64::MAX])
}

fn offset(input: &mut Input<'_>) -> u64 {
    input.of(&[
        0u64,
        1,
        4096,
        u64::MAX,
        1 << 63,
        i64::MAX.unsigned_abs(),
        1 << 40,
    ])
}

/// Changes some bytes of a message, its length included, or cuts it.
fn distort(message: &mut Vec<u8>, input: &mut Input<'_>) {
    match input.u8() % 4 {
        0 => message.truncate(input.below(message.len() + 1)),
        1 => {
            let length = input.of(&[0u32, 39, 40, 41, 4096, 1 << 20, u32::MAX]);
            message[..4].copy_from_slice(&length.to_le_bytes());
        }
        2 => {
            // Owner and group, or the length of extensions.
            let at = input.of(&[24usize, 28, 36]);
            let bytes = input.of(&[1000u32, u32::MAX, 1, 8]).to_le_bytes();
            message[at..at + 4].copy_from_slice(&bytes);
        }
        _ => {
            let at = input.below(message.len());
            message[at] = input.u8();
        }
    }
}
