//! A FUSE client: one request and one answer at a time, through a real chain in fake guest memory.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;
use virtiofsd::filesystem::FsOptions;
use virtiofsd::fuse::{
    CreateIn, EntryOut, InHeader, InitInCompat, InitInExt, InitOut, MkdirIn, Opcode, OpenIn,
    OpenOut, OutHeader, ReadIn, WriteIn, WriteOut,
};
use virtiofsd::soft_idmap::{GuestGid, GuestUid};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::fs::server::Server;
use crate::fs::share::{Limits, Share};
use crate::fs::thread;
use crate::fs::view::View;
use crate::{Event, GuestMemory, Irq, Queue, QueueState};

const MEMORY_BYTES: usize = 8 << 20;
const QUEUE_SIZE: u16 = 16;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const REQUEST: u64 = 0x10_0000;
const REPLY: u64 = 0x40_0000;
/// More room than any answer needs.
pub(super) const ROOM: u32 = 2 << 20;

pub(super) const ROOT: u64 = 1;
pub(super) const PLENTY: Limits = Limits {
    descriptors: 64 * 1024,
    kept_inodes: 64 * 1024,
};

/// What a current Linux guest offers.
pub(super) fn linux_options() -> FsOptions {
    FsOptions::SUBMOUNTS
        | FsOptions::INIT_EXT
        | FsOptions::POSIX_ACL
        | FsOptions::DONT_MASK
        | FsOptions::SETXATTR_EXT
        | FsOptions::HANDLE_KILLPRIV_V2
        | FsOptions::WRITEBACK_CACHE
        | FsOptions::MAX_PAGES
        | FsOptions::ATOMIC_O_TRUNC
        | FsOptions::AUTO_INVAL_DATA
        | FsOptions::CREATE_SUPP_GROUP
        | FsOptions::CACHE_SYMLINKS
        | FsOptions::POSIX_LOCKS
        | FsOptions::FLOCK_LOCKS
}

/// The driver's side of one queue in fake guest memory.
struct Ring {
    memory: Arc<GuestMemory>,
    offered: u16,
}

impl Ring {
    /// Offers a chain of the bytes of a request and of `room` bytes for the answer. A part of no bytes is left out.
    fn offer(&mut self, request: &[u8], room: u32) {
        let length = u32::try_from(request.len()).unwrap();
        self.put(request, REQUEST);
        let parts = [(REQUEST, length, false), (REPLY, room, true)];
        let parts: Vec<_> = parts.iter().filter(|part| part.1 > 0).collect();
        for (index, (address, length, writable)) in parts.iter().enumerate() {
            let more = u16::from(index + 1 < parts.len());
            let at = DESCRIPTORS + 16 * u64::try_from(index).unwrap();
            self.put(&address.to_le_bytes(), at);
            self.put(&length.to_le_bytes(), at + 8);
            self.put(&(more | u16::from(*writable) << 1).to_le_bytes(), at + 12);
            self.put(&1u16.to_le_bytes(), at + 14);
        }
        let slot = u64::from(self.offered % QUEUE_SIZE);
        self.put(&0u16.to_le_bytes(), AVAILABLE + 4 + 2 * slot);
        self.offered = self.offered.wrapping_add(1);
        self.put(&self.offered.to_le_bytes(), AVAILABLE + 2);
    }

    /// The first `length` bytes of the answer.
    fn reply(&self, length: usize) -> Vec<u8> {
        let mut reply = vec![0; length];
        self.memory
            .read_slice(&mut reply, GuestAddress(REPLY))
            .unwrap();
        reply
    }

    fn put(&self, bytes: &[u8], address: u64) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }
}

pub(super) fn proc_self_fd() -> OwnedFd {
    rustix::fs::open("/proc/self/fd", OFlags::PATH, Mode::empty()).unwrap()
}

/// A client of a server of its own, which shares `share` in a fresh directory; `victim` lies beside it.
pub(super) struct Client {
    pub(super) directory: TempDir,
    ring: Ring,
    queue: Queue,
    view: View,
    pub(super) server: Server,
    unique: u64,
}

impl Client {
    /// A client in the middle of a session.
    pub(super) fn mounted() -> Self {
        Self::mounted_with(PLENTY)
    }

    pub(super) fn mounted_with(limits: Limits) -> Self {
        let mut client = Self::new(limits);
        client.init(linux_options()).unwrap();
        client
    }

    pub(super) fn new(limits: Limits) -> Self {
        Self::serving(limits, Share::of_guest)
    }

    /// A client in the middle of a session on a share as a supervisor makes it, with one container
    /// that is not mounted yet: its `rootfs` and `mounts/0`, and a file `mounts/1`.
    pub(super) fn above_mounts() -> Self {
        let mut client = Self::serving(PLENTY, |share| share);
        for directory in ["c", "c/rootfs", "c/mounts", "c/mounts/0"] {
            std::fs::create_dir(client.path(directory)).unwrap();
        }
        std::fs::write(client.path("c/mounts/1"), "empty").unwrap();
        client.init(linux_options()).unwrap();
        client
    }

    fn serving(limits: Limits, owner: fn(Share) -> Share) -> Self {
        thread::own_directory_and_umask().unwrap();
        let directory = TempDir::new().unwrap();
        std::fs::create_dir(directory.path().join("share")).unwrap();
        std::fs::write(directory.path().join("victim"), "precious").unwrap();
        let root = directory.path().join("share");
        let share = Share::new(root.to_str().unwrap(), File::from(proc_self_fd()), limits).unwrap();
        let share = owner(share);
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let memory = Arc::new(memory);
        let state = QueueState {
            size: QUEUE_SIZE,
            descriptors: DESCRIPTORS,
            available: AVAILABLE,
            used: USED,
            ..QueueState::default()
        };
        let irq = Arc::new(Irq::new(Event::new().unwrap()));
        let queue = Queue::new(&state, QUEUE_SIZE, &memory, Event::new().unwrap(), irq).unwrap();
        Self {
            directory,
            ring: Ring {
                memory: Arc::clone(&memory),
                offered: 0,
            },
            queue,
            view: View::new(memory).unwrap(),
            server: Server::new(share),
            unique: 0,
        }
    }

    /// A path below the share, for the host's side.
    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join("share").join(below)
    }

    /// Sends bytes as they are; returns how many bytes of an answer there are said to be, and those bytes.
    pub(super) fn send(&mut self, request: &[u8], room: u32) -> Vec<u8> {
        self.ring.offer(request, room);
        let memory = Arc::clone(&self.ring.memory);
        let chain = self.queue.next(&memory).unwrap().unwrap();
        let (reader, writer) = self.view.streams(&chain).unwrap();
        let written = self.server.answer(reader, writer);
        let head = chain.head();
        self.queue.complete(&memory, head, 0).unwrap();
        self.ring.reply(written)
    }

    /// A whole message: the header for `body`, then `body`.
    pub(super) fn message(&mut self, opcode: Opcode, inode: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 1;
        let header = InHeader {
            len: u32::try_from(size_of::<InHeader>() + body.len()).unwrap(),
            opcode: opcode as u32,
            unique: self.unique,
            nodeid: inode,
            uid: GuestUid::from(rustix::process::geteuid().as_raw()),
            gid: GuestGid::from(rustix::process::getegid().as_raw()),
            ..InHeader::default()
        };
        [header.as_slice(), body].concat()
    }

    /// Asks and takes the answer apart: what follows its header, or the errno.
    pub(super) fn ask(&mut self, opcode: Opcode, inode: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let request = self.message(opcode, inode, body);
        let reply = self.send(&request, ROOM);
        let header: OutHeader = parse(&reply);
        assert_eq!(header.unique, self.unique);
        assert_eq!(usize::try_from(header.len).unwrap(), reply.len());
        match header.error {
            0 => Ok(reply[size_of::<OutHeader>()..].to_vec()),
            error => Err(-error),
        }
    }

    /// Sends what is not answered.
    pub(super) fn tell(&mut self, opcode: Opcode, inode: u64, body: &[u8]) {
        let request = self.message(opcode, inode, body);
        assert_eq!(self.send(&request, 0), b"");
    }

    pub(super) fn init(&mut self, options: FsOptions) -> Result<(InitOut, FsOptions), i32> {
        let body = init_body(options);
        let out: InitOut = parse(&self.ask(Opcode::Init, 0, &body)?);
        let enabled = u64::from(out.flags) | u64::from(out.flags2) << 32;
        Ok((out, FsOptions::from_bits_truncate(enabled)))
    }

    pub(super) fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<EntryOut, i32> {
        self.ask(Opcode::Lookup, parent, &with_nul(name))
            .map(|body| parse(&body))
    }

    pub(super) fn mkdir(&mut self, parent: u64, name: &[u8]) -> Result<EntryOut, i32> {
        let body = MkdirIn {
            mode: 0o755,
            umask: 0,
        };
        let body = [body.as_slice(), &with_nul(name)].concat();
        self.ask(Opcode::Mkdir, parent, &body)
            .map(|body| parse(&body))
    }

    /// Creates a file and opens it.
    pub(super) fn create(
        &mut self,
        parent: u64,
        name: &[u8],
        flags: i32,
    ) -> Result<(EntryOut, OpenOut), i32> {
        let body = CreateIn {
            flags: flags.cast_unsigned(),
            mode: 0o644,
            ..CreateIn::default()
        };
        let body = [body.as_slice(), &with_nul(name)].concat();
        let reply = self.ask(Opcode::Create, parent, &body)?;
        let (entry, open) = reply.split_at(size_of::<EntryOut>());
        Ok((parse(entry), parse(open)))
    }

    /// Makes a file without a name in `parent` and opens it.
    pub(super) fn tmpfile(&mut self, parent: u64, flags: i32) -> Result<(EntryOut, OpenOut), i32> {
        let body = CreateIn {
            flags: (flags | libc::O_TMPFILE).cast_unsigned(),
            mode: libc::S_IFREG | 0o640,
            umask: 0o022,
            ..CreateIn::default()
        };
        let body = [body.as_slice(), &with_nul(b"/")].concat();
        let reply = self.ask(Opcode::TmpFile, parent, &body)?;
        let (entry, open) = reply.split_at(size_of::<EntryOut>());
        Ok((parse(entry), parse(open)))
    }

    pub(super) fn open(&mut self, inode: u64, flags: i32) -> Result<OpenOut, i32> {
        let body = OpenIn {
            flags: flags.cast_unsigned(),
            open_flags: 0,
        };
        self.ask(Opcode::Open, inode, body.as_slice())
            .map(|body| parse(&body))
    }

    pub(super) fn write(
        &mut self,
        inode: u64,
        fh: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<u32, i32> {
        let body = WriteIn {
            fh,
            offset,
            size: u32::try_from(data.len()).unwrap(),
            ..WriteIn::default()
        };
        let body = [body.as_slice(), data].concat();
        self.ask(Opcode::Write, inode, &body)
            .map(|body| parse::<WriteOut>(&body).size)
    }

    pub(super) fn read(
        &mut self,
        inode: u64,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, i32> {
        let body = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.ask(Opcode::Read, inode, body.as_slice())
    }
}

pub(super) fn init_body(options: FsOptions) -> Vec<u8> {
    let (low, high) = (options.bits() & 0xffff_ffff, options.bits() >> 32);
    let first = InitInCompat {
        major: 7,
        minor: 41,
        max_readahead: 128 << 10,
        flags: u32::try_from(low).unwrap(),
    };
    let second = InitInExt {
        flags2: u32::try_from(high).unwrap(),
        ..InitInExt::default()
    };
    [first.as_slice(), second.as_slice()].concat()
}

pub(super) fn with_nul(name: &[u8]) -> Vec<u8> {
    [name, b"\0"].concat()
}

/// A wire structure from the start of `bytes`.
pub(super) fn parse<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    value
        .as_mut_slice()
        .copy_from_slice(&bytes[..size_of::<T>()]);
    value
}
