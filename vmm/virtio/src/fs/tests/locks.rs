//! Locks on files of volumes, against the host and between processes of a guest.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use virtiofsd::fuse::{FileLock, FlushIn, LkIn, LkOut, Opcode, ReleaseIn};
use vm_memory::ByteValued;

use super::client::{Client, ROOT, linux_options, parse};
use crate::fs::locks::{Kind, Range};
use crate::fs::record;

const SHARED: i32 = libc::F_RDLCK;
const EXCLUSIVE: i32 = libc::F_WRLCK;
const NONE: i32 = libc::F_UNLCK;
const WHOLE_FILE: u32 = 1;

/// A client, and a file of a volume or of a root file system: its inode, a handle, and the host's.
struct Case {
    client: Client,
    inode: u64,
    handle: u64,
    host: File,
}

impl Case {
    fn new(place: &str) -> Self {
        let client = Client::mounted();
        let path = client.path(&format!("c/{place}"));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("file"), "text").unwrap();
        let host = File::options()
            .read(true)
            .write(true)
            .open(path.join("file"));
        let mut case = Self {
            client,
            inode: ROOT,
            handle: 0,
            host: host.unwrap(),
        };
        for name in ["c", place, "file"] {
            let found = case.client.lookup(case.inode, name.as_bytes()).unwrap();
            case.inode = found.nodeid;
        }
        case.handle = case.open();
        case
    }

    fn open(&mut self) -> u64 {
        self.client.open(self.inode, libc::O_RDWR).unwrap().fh
    }

    fn ask(&mut self, opcode: Opcode, asked: LkIn) -> Result<Vec<u8>, i32> {
        self.client.ask(opcode, self.inode, asked.as_slice())
    }

    /// What becomes of a record lock on the first bytes.
    fn set(&mut self, owner: u64, kind: i32) -> Option<i32> {
        let asked = record_of(self.handle, owner, kind);
        self.ask(Opcode::Setlkw, asked).err()
    }

    /// Of a lock of the whole file by `handle`.
    fn set_whole(&mut self, handle: u64, kind: i32) -> Option<i32> {
        let asked = LkIn {
            lk_flags: WHOLE_FILE,
            ..record_of(handle, 1, kind)
        };
        self.ask(Opcode::Setlkw, asked).err()
    }

    fn flush(&mut self, owner: u64) {
        let body = FlushIn {
            fh: self.handle,
            lock_owner: owner,
            ..FlushIn::default()
        };
        self.client
            .ask(Opcode::Flush, self.inode, body.as_slice())
            .unwrap();
    }

    fn release(&mut self, handle: u64) {
        let body = ReleaseIn {
            fh: handle,
            ..ReleaseIn::default()
        };
        self.client
            .ask(Opcode::Release, self.inode, body.as_slice())
            .unwrap();
    }

    /// Whether the host could lock the first bytes; it does not.
    fn is_free(&self) -> bool {
        record::find(&self.host, BYTES, Kind::Exclusive)
            .unwrap()
            .is_none()
    }
}

const BYTES: Range = Range { start: 0, end: 9 };

fn record_of(handle: u64, owner: u64, kind: i32) -> LkIn {
    LkIn {
        fh: handle,
        owner,
        lk: FileLock {
            start: BYTES.start,
            end: BYTES.end,
            type_: kind.cast_unsigned(),
            pid: 1000 + u32::try_from(owner).unwrap(),
        },
        ..LkIn::default()
    }
}

#[test]
fn a_whole_file_is_locked_for_host_and_guest_and_nobody_waits() {
    let mut case = Case::new("data");
    let other = case.open();
    assert_eq!(case.set_whole(case.handle, EXCLUSIVE), None);
    assert_eq!(case.set_whole(other, SHARED), Some(libc::EAGAIN));
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    assert!(flock(&case.host, exclusive).is_err());
    assert_eq!(case.set_whole(case.handle, NONE), None);
    assert_eq!(case.set_whole(other, SHARED), None);
    assert_eq!(case.set_whole(case.handle, SHARED), None);
    case.release(case.handle);
    case.release(other);
    flock(&case.host, exclusive).unwrap();
    let third = case.open();
    assert_eq!(case.set_whole(third, SHARED), Some(libc::EAGAIN));
    flock(&case.host, FlockOperation::Unlock).unwrap();
    assert_eq!(case.set_whole(third, SHARED), None);
}

#[test]
fn records_are_locked_for_host_and_guest_and_are_their_owners() {
    let mut case = Case::new("data");
    assert_eq!(case.set(1, EXCLUSIVE), None);
    assert_eq!(case.set(2, SHARED), Some(libc::EAGAIN));
    assert!(!case.is_free());
    // It is the owner's to change, and to give up.
    assert_eq!(case.set(1, SHARED), None);
    assert_eq!(case.set(2, SHARED), None);
    assert_eq!(case.set(2, EXCLUSIVE), Some(libc::EAGAIN));
    assert_eq!(case.set(1, NONE), None);
    assert_eq!(case.set(2, EXCLUSIVE), None);
    assert_eq!(case.set(2, NONE), None);
    assert!(case.is_free());
    // What was never locked can be unlocked.
    assert_eq!(case.set(3, NONE), None);
    record::set(&case.host, BYTES, Some(Kind::Shared)).unwrap();
    assert_eq!(case.set(1, EXCLUSIVE), Some(libc::EAGAIN));
    assert_eq!(case.set(1, SHARED), None);
}

#[test]
fn who_has_a_lock_is_told_if_it_is_of_the_guest() {
    let mut case = Case::new("data");
    let found = |case: &mut Case, owner| {
        let asked = record_of(case.handle, owner, EXCLUSIVE);
        let lock = parse::<LkOut>(&case.ask(Opcode::Getlk, asked).unwrap()).lk;
        (lock.type_.cast_signed(), lock.start, lock.end, lock.pid)
    };
    assert_eq!(found(&mut case, 2).0, NONE);
    assert_eq!(case.set(1, SHARED), None);
    assert_eq!(found(&mut case, 2), (SHARED, 0, 9, 1001));
    assert_eq!(found(&mut case, 1).0, NONE);
    assert_eq!(case.set(1, NONE), None);
    let rest = Range {
        start: 5,
        end: record::LAST,
    };
    record::set(&case.host, rest, Some(Kind::Exclusive)).unwrap();
    assert_eq!(found(&mut case, 1), (EXCLUSIVE, 5, record::LAST, 0));
}

#[test]
fn locks_end_with_a_close_a_file_and_a_session() {
    let mut case = Case::new("data");
    // Of a process, with any descriptor it closes.
    assert_eq!(case.set(1, EXCLUSIVE), None);
    case.flush(2);
    assert!(!case.is_free());
    case.flush(1);
    assert!(case.is_free());
    // Of an open file, with its last one.
    let (first, second) = (case.handle, case.open());
    case.handle = second;
    assert_eq!(case.set(3, EXCLUSIVE), None);
    case.release(first);
    assert!(!case.is_free());
    case.release(second);
    assert!(case.is_free());
    case.handle = case.open();
    assert_eq!(case.set(1, EXCLUSIVE), None);
    case.client.init(linux_options()).unwrap();
    assert!(case.is_free());
    let mut case = Case::new("data");
    assert_eq!(case.set(1, EXCLUSIVE), None);
    assert_eq!(case.set_whole(case.handle, SHARED), None);
    case.client.tell(Opcode::Destroy, 0, &[]);
    assert!(case.is_free());
    flock(&case.host, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn locks_of_a_root_file_system_are_the_guests_own() {
    let mut case = Case::new("rootfs");
    let refused = Some(libc::ENOSYS);
    assert_eq!(case.set(1, EXCLUSIVE), refused);
    assert_eq!(case.set(1, NONE), refused);
    assert_eq!(case.set_whole(case.handle, SHARED), refused);
    let asked = record_of(case.handle, 1, SHARED);
    assert_eq!(case.ask(Opcode::Getlk, asked).err(), refused);
}

#[test]
fn files_without_a_name_are_locked_too() {
    let mut case = Case::new("data");
    let container = case.client.lookup(ROOT, b"c").unwrap().nodeid;
    let data = case.client.lookup(container, b"data").unwrap().nodeid;
    let (entry, open) = case.client.tmpfile(data, libc::O_RDWR).unwrap();
    (case.inode, case.handle) = (entry.nodeid, open.fh);
    assert_eq!(case.set(1, EXCLUSIVE), None);
    assert_eq!(case.set(2, EXCLUSIVE), Some(libc::EAGAIN));
    assert_eq!(case.set_whole(case.handle, EXCLUSIVE), None);
    case.flush(1);
    assert_eq!(case.set(2, EXCLUSIVE), None);
}

#[test]
fn a_file_that_is_run_is_locked_for_readers() {
    let mut case = Case::new("data");
    let path = case.client.path("c/data/file");
    std::fs::copy("/bin/sleep", &path).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    case.release(case.handle);
    case.host = File::open(&path).unwrap();
    let mut run = Command::new(&path).arg("1000").spawn().unwrap();
    case.handle = case.client.open(case.inode, libc::O_RDONLY).unwrap().fh;
    let locked = [case.set(2, EXCLUSIVE), case.set(1, SHARED)];
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(locked, [Some(libc::EBADF), None]);
}

#[test]
fn messages_about_locks_that_make_no_sense_are_refused() {
    let mut case = Case::new("data");
    let (inode, handle) = (case.inode, case.handle);
    let good = record_of(handle, 1, SHARED);
    let with = |lk: FileLock| LkIn { lk, ..good };
    for (asked, error) in [
        (
            with(FileLock {
                type_: 7,
                ..good.lk
            }),
            libc::EINVAL,
        ),
        (
            with(FileLock {
                start: 10,
                ..good.lk
            }),
            libc::EINVAL,
        ),
        (
            with(FileLock {
                end: 1 << 63,
                ..good.lk
            }),
            libc::EINVAL,
        ),
        (LkIn { fh: 999, ..good }, libc::EBADF),
        (
            LkIn {
                fh: 999,
                lk_flags: WHOLE_FILE,
                ..good
            },
            libc::EBADF,
        ),
    ] {
        assert_eq!(
            case.ask(Opcode::Setlk, asked).err(),
            Some(error),
            "{asked:?}"
        );
    }
    let unlocked = record_of(handle, 1, NONE);
    assert_eq!(case.ask(Opcode::Getlk, unlocked).err(), Some(libc::EINVAL));
    let short = &good.as_slice()[..20];
    let asked = case.client.ask(Opcode::Setlk, inode, short);
    assert_eq!(asked.err(), Some(libc::EINVAL));
    case.inode = 999;
    assert_eq!(case.set(1, SHARED), Some(libc::ENOSYS));
}

#[test]
fn owners_without_end_are_refused() {
    let mut case = Case::new("data");
    let refused = (1..10_000).find_map(|owner| case.set(owner, SHARED));
    assert_eq!(refused, Some(libc::ENOLCK));
    assert_eq!(case.set(1, NONE), None);
    assert_eq!(case.set(20_000, SHARED), None);
}
