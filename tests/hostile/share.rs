//! A FUSE client that sends whatever it is told to.

use crate::cpu;
use crate::transport::{ANSWER_MAX, Device, FS, Live, SIZE, answer_of, request_of};

/// Operations.
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
pub(crate) const SETXATTR: u32 = 21;
pub(crate) const REMOVEXATTR: u32 = 24;
pub(crate) const INIT: u32 = 26;
pub(crate) const OPENDIR: u32 = 27;
pub(crate) const READDIR: u32 = 28;
pub(crate) const RELEASEDIR: u32 = 29;
pub(crate) const CREATE: u32 = 35;
pub(crate) const DESTROY: u32 = 38;
pub(crate) const BATCH_FORGET: u32 = 42;
pub(crate) const FALLOCATE: u32 = 43;
pub(crate) const RENAME2: u32 = 45;
pub(crate) const COPY_FILE_RANGE: u32 = 47;
pub(crate) const SYNCFS: u32 = 50;
pub(crate) const TMPFILE: u32 = 51;
/// The last one known.
pub(crate) const LAST: u32 = 53;

/// The root's inode.
pub(crate) const ROOT: u64 = 1;

/// Headers of requests and of answers.
pub(crate) const IN_HEADER: usize = 40;
const OUT_HEADER: u64 = 16;
/// The longest request that is put together here.
const REQUEST_MAX: usize = 0x2_0000;

/// What Linux announces at INIT, as far as it matters here: mounts are told apart (`FUSE_SUBMOUNTS`).
pub(crate) const INIT_FLAGS: u32 = 1 | 1 << 3 | 1 << 5 | 1 << 27;

/// Flags of `open(2)`.
pub(crate) const O_RDONLY: u32 = 0;
pub(crate) const O_RDWR: u32 = 2;
pub(crate) const O_CREAT: u32 = 0o100;
pub(crate) const O_EXCL: u32 = 0o200;
pub(crate) const O_TRUNC: u32 = 0o1000;
pub(crate) const O_DIRECTORY: u32 = 0o20_0000;

/// Kinds of files.
pub(crate) const S_IFREG: u32 = 0o10_0000;
pub(crate) const S_IFCHR: u32 = 0o2_0000;
pub(crate) const S_IFBLK: u32 = 0o6_0000;
pub(crate) const S_IFIFO: u32 = 0o1_0000;
pub(crate) const S_IFSOCK: u32 = 0o14_0000;

/// Errors.
pub(crate) const ENFILE: i32 = 23;
pub(crate) const EMFILE: i32 = 24;
/// Stands for an answer that did not come.
pub(crate) const SILENCE: i32 = 0;

/// The share, with the requests sent so far.
pub(crate) struct Share {
    pub(crate) live: Live,
    unique: u64,
}

/// What an operation returned of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) inode: u64,
    pub(crate) mode: u32,
    pub(crate) size: u64,
}

/// An answer: how many bytes there are behind its header, or the error.
pub(crate) type Answer = Result<u32, i32>;

impl Share {
    /// On a device that runs.
    pub(crate) fn of(live: Live) -> Self {
        Self { live, unique: 0 }
    }

    /// Started and mounted.
    pub(crate) fn mounted() -> Option<Self> {
        let mut share = Self::of(Device::at(FS)?.bring_up(SIZE));
        share.init().then_some(share)
    }

    /// Begins a session.
    pub(crate) fn init(&mut self) -> bool {
        let mut body = [0u32; 16];
        body[..4].copy_from_slice(&[7, 41, 1 << 17, INIT_FLAGS]);
        self.ask(INIT, 0, &[&bytes_of(&body)]).is_ok()
    }

    /// Sends a request whose body is made of parts.
    pub(crate) fn ask(&mut self, op: u32, inode: u64, parts: &[&[u8]]) -> Answer {
        let length = IN_HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        self.ask_with_length(op, inode, parts, length as u32)
    }

    /// The same, with a length in the header that may be a lie.
    pub(crate) fn ask_with_length(
        &mut self,
        op: u32,
        inode: u64,
        parts: &[&[u8]],
        length: u32,
    ) -> Answer {
        let sent = self.put(op, inode, parts, length);
        self.await_answer(sent, ANSWER_MAX)
    }

    /// Sends what was put, with so much room for its answer.
    fn await_answer(&mut self, sent: usize, room: u32) -> Answer {
        cpu::fill(answer_of(FS), 0, OUT_HEADER);
        let written = self.live.ask_in_place(1, sent as u32, room);
        self.answer(written)
    }

    /// Sends what is not answered.
    pub(crate) fn tell(&mut self, op: u32, inode: u64, parts: &[&[u8]]) {
        let length = IN_HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        let sent = self.put(op, inode, parts, length as u32);
        self.live.ask_in_place(0, sent as u32, 0);
    }

    /// Writes a request to its place; how long it is.
    fn put(&mut self, op: u32, inode: u64, parts: &[&[u8]], length: u32) -> usize {
        self.unique += 1;
        let at = request_of(FS);
        cpu::fill(at, 0, IN_HEADER as u64);
        cpu::write32(at, length);
        cpu::write32(at + 4, op);
        cpu::write64(at + 8, self.unique);
        cpu::write64(at + 16, inode);
        let mut sent = IN_HEADER;
        for part in parts {
            assert!(
                sent + part.len() <= REQUEST_MAX,
                "a request of this program's is too long"
            );
            cpu::copy_in(at + sent as u64, part);
            sent += part.len();
        }
        sent
    }

    fn answer(&self, written: Option<u32>) -> Answer {
        let at = answer_of(FS);
        let error = cpu::read32(at + 4).cast_signed();
        match written {
            None | Some(0..=15) => Err(SILENCE),
            Some(_) if error != 0 => Err(-error),
            Some(written) => Ok(written - OUT_HEADER as u32),
        }
    }

    /// A word of the last answer's body.
    pub(crate) fn word(&self, offset: u64) -> u64 {
        cpu::read64(answer_of(FS) + OUT_HEADER + offset)
    }

    /// A file as the last answer, an entry, tells of it.
    pub(crate) fn entry(&self) -> Entry {
        let attributes = answer_of(FS) + OUT_HEADER + 40;
        Entry {
            inode: self.word(0),
            mode: cpu::read32(attributes + 60),
            size: cpu::read64(attributes + 8),
        }
    }

    /// Looks a name up.
    pub(crate) fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<Entry, i32> {
        self.ask(LOOKUP, parent, &[name, b"\0"])?;
        Ok(self.entry())
    }

    /// Creates a file and opens it; its inode and its handle.
    pub(crate) fn create(&mut self, parent: u64, name: &[u8]) -> Result<(u64, u64), i32> {
        self.ask(
            CREATE,
            parent,
            &[&bytes_of(&[O_RDWR | O_CREAT, 0o644, 0, 0]), name, b"\0"],
        )?;
        Ok((self.word(0), self.word(128)))
    }

    /// Writes to an open file.
    pub(crate) fn write(
        &mut self,
        inode: u64,
        handle: u64,
        offset: u64,
        bytes: &[u8],
        size: u32,
    ) -> Answer {
        let body = write_body(handle, offset, size);
        self.ask(WRITE, inode, &[&body, bytes])
    }

    /// Reads from an open file. As with Linux there is room for what is asked for and no more: with
    /// more, virtiofsd answers EIO where the file goes on.
    pub(crate) fn read(&mut self, inode: u64, handle: u64, offset: u64, size: u32) -> Answer {
        let body = write_body(handle, offset, size);
        let sent = self.put(READ, inode, &[&body], (IN_HEADER + body.len()) as u32);
        let room = size.saturating_add(OUT_HEADER as u32).min(ANSWER_MAX);
        self.await_answer(sent, room)
    }

    /// Gives the name of the first entry of a directory that is neither `.` nor `..` to `name`; how long it is.
    pub(crate) fn first_name(&mut self, directory: u64, name: &mut [u8; 256]) -> Option<usize> {
        self.ask(OPENDIR, directory, &[&[0; 8]]).ok()?;
        let handle = self.word(0);
        let length = u64::from(
            self.ask(READDIR, directory, &[&write_body(handle, 0, 4096)])
                .ok()?,
        );
        let found = Self::name_in_answer(length, name);
        let _ = self.ask(RELEASEDIR, directory, &[&write_body(handle, 0, 0)[..24]]);
        found
    }

    /// The first name but `.` and `..` in an answer of so many bytes.
    fn name_in_answer(length: u64, name: &mut [u8; 256]) -> Option<usize> {
        let start = answer_of(FS) + OUT_HEADER;
        let mut at = 0;
        while at + 24 <= length {
            let bytes = u64::from(cpu::read32(start + at + 16));
            let name = name.get_mut(..bytes as usize)?;
            cpu::copy_out(start + at + 24, name);
            if name != b"." && name != b".." {
                return Some(name.len());
            }
            at += (24 + bytes).next_multiple_of(8);
        }
        None
    }
}

/// `struct fuse_write_in`, which begins as `struct fuse_read_in` does.
pub(crate) fn write_body(handle: u64, offset: u64, size: u32) -> [u8; 40] {
    let mut body = [0; 40];
    body[..8].copy_from_slice(&handle.to_le_bytes());
    body[8..16].copy_from_slice(&offset.to_le_bytes());
    body[16..20].copy_from_slice(&size.to_le_bytes());
    body
}

/// Words as they are sent: as many bytes as fit, 64.
pub(crate) fn bytes_of<const N: usize>(words: &[u32; N]) -> Words<N> {
    Words(*words)
}

/// Little-endian words that are sent as bytes.
pub(crate) struct Words<const N: usize>([u32; N]);

impl<const N: usize> core::ops::Deref for Words<N> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        crate::cpu::bytes_of_words(&self.0)
    }
}
