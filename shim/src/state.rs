//! The state directory of a sandbox: `<root>/<id>/`, mode 0700.
//!
//! ```text
//!   state.json      the record, replaced by rename
//!   task.sock       the Task API
//!   shared/         the directory the guest sees; a tmpfs in the supervisor's own mount namespace
//!   staging/        empty; what is mounted for a moment in that namespace
//!   supervisor.log  the supervisor's standard error
//!
//!   ~<number>/ ── complete, locked ── renamed ─► <id>/ ── locked, renamed ─► ~<number>/ ── emptied ─► gone
//! ```
//!
//! A directory appears under its id complete and locked (`flock`): that is what claims the id. Its owner, a supervisor or what stands for a
//! container, keeps the lock for its life. Who cleans up behind it takes the lock first, and then has the directory that it has read, or
//! learns that this one is gone; one that was made since under the same id is another. All of it is used by descriptor.
//!
//! The record says enough for a later process to end and remove everything when the supervisor itself is dead. Removal takes away what this
//! program puts there, by name, and never goes into a directory. Ways to fail: the id is taken, not valid or not there, somebody else is
//! at it, or the file system refuses.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

mod process;
mod record;

pub(crate) use process::ProcessRef;
#[cfg(fuzzing)]
pub(crate) use process::read_stat;
pub(crate) use record::{CgroupRef, ContainerRecord, Record, Status, now_ns};

/// The longest id: it is a directory's name.
const ID_MAX_BYTES: usize = 255;

/// Begins the name of a directory that is not an id's yet, or not any more. No id has it.
const NAMELESS: char = '~';

/// The Task API's name in the directory.
const SOCKET: &str = "task.sock";

/// The record's name, and its name while it is written.
const RECORD: &str = "state.json";
const NEW_RECORD: &str = "state.json.new";

const LOG: &str = "supervisor.log";
const SHARED: &str = "shared";
const STAGING: &str = "staging";

/// Everything that is put into the directory, and how it is removed. The record goes last: without it nobody knows what else there was.
const CONTENTS: [(&str, AtFlags); 6] = [
    (SHARED, AtFlags::REMOVEDIR),
    (STAGING, AtFlags::REMOVEDIR),
    (SOCKET, AtFlags::empty()),
    (LOG, AtFlags::empty()),
    (NEW_RECORD, AtFlags::empty()),
    (RECORD, AtFlags::empty()),
];

/// How often a directory is made anew because a collection took it for a dead one before it was locked.
const CLAIMS_MAX: u32 = 16;

/// The boot that pids and start times belong to.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The state directory of one sandbox. Clones are the same one, and hold the same lock.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    root: Arc<Root>,
    id: String,
    fd: Arc<OwnedFd>,
}

/// The directory of all state directories.
#[derive(Debug)]
struct Root {
    /// Without links.
    path: PathBuf,
    fd: OwnedFd,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// See [`check_id`].
    #[error("invalid id {0:?}: letters, digits and _ + , - . only, 1 to {ID_MAX_BYTES} of them")]
    InvalidId(String),
    /// Another sandbox has the id, or an ended one was not deleted yet.
    #[error("a container with id {0:?} exists already")]
    Exists(String),
    /// Nobody has the id.
    #[error("container {0:?} does not exist")]
    NotFound(String),
    /// Somebody has the lock.
    #[error("container {0:?} is being worked on by another process")]
    Busy(String),
    /// `state.json` is not what this program writes.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// Something is in the directory that this program did not put there.
    #[error("{} is left: cannot remove {name} in it", path.display())]
    Left {
        path: PathBuf,
        name: &'static str,
        #[source]
        source: io::Error,
    },
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What `state.json` holds.
#[derive(Deserialize, Serialize)]
struct Stored<R> {
    /// The boot at which it was written.
    boot_id: String,
    #[serde(flatten)]
    record: R,
}

impl Root {
    /// The root at `path`, which is made when missing if `make`.
    fn open(path: &Path, make: bool) -> Result<Self, StateError> {
        if make {
            let mut builder = DirBuilder::new();
            let made = builder.mode(0o700).recursive(true).create(path);
            made.map_err(|e| io_error("create", path, e))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
        let named = opened.and_then(|fd| {
            let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
            Ok(Self { path, fd })
        });
        named.map_err(|e| io_error("open", path, e))
    }
}

impl StateDir {
    /// Claims `id`: its directory appears with the record, locked for as long as this is kept. `root` is made when missing.
    pub(crate) fn claim(
        root: &Path,
        id: &str,
        record: Option<&Record>,
    ) -> Result<Self, StateError> {
        check_id(id)?;
        let root = Arc::new(Root::open(root, true)?);
        for _ in 0..CLAIMS_MAX {
            if let Some(dir) = Self::try_claim(&root, id, record)? {
                return Ok(dir);
            }
        }
        Err(StateError::Busy(id.to_owned()))
    }

    /// The same without a record.
    #[cfg(test)]
    pub(crate) fn create(root: &Path, id: &str) -> Result<Self, StateError> {
        Self::claim(root, id, None)
    }

    /// None if a collection was faster.
    fn try_claim(
        root: &Arc<Root>,
        id: &str,
        record: Option<&Record>,
    ) -> Result<Option<Self>, StateError> {
        let name = nameless()?;
        let path = root.path.join(&name);
        let failed = |e: Errno| io_error("create", &path, e.into());
        rustix::fs::mkdirat(&root.fd, &name, Mode::RWXU).map_err(failed)?;
        let fd = match directory(&root.fd, &name) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("open", &path, e)),
        };
        let dir = Self {
            root: Arc::clone(root),
            id: id.to_owned(),
            fd: Arc::new(fd),
        };
        let has_lock = try_lock(&dir.fd).and_then(|locked| Ok(locked && dir.has_name(&name)?));
        if !has_lock.map_err(|e| io_error("lock", &path, e))? {
            return Ok(None);
        }
        let claimed = dir.fill(record).and_then(|()| dir.take_name(&name));
        if !matches!(claimed, Ok(true)) {
            // A collection finds what cannot be removed now.
            if let Err(error) = dismantle(root, &name, &dir.fd) {
                tracing::debug!("{:#}", anyhow::Error::from(error));
            }
        }
        Ok(claimed?.then_some(dir))
    }

    fn fill(&self, record: Option<&Record>) -> Result<(), StateError> {
        for name in [SHARED, STAGING] {
            rustix::fs::mkdirat(&*self.fd, name, Mode::RWXU)
                .map_err(|e| io_error("create", self.path().join(name), e.into()))?;
        }
        record.map_or(Ok(()), |record| self.write(record))
    }

    /// Gives the directory `name` the id, if that is free; false if the directory is gone.
    fn take_name(&self, name: &str) -> Result<bool, StateError> {
        let fd = &self.root.fd;
        match rustix::fs::renameat_with(fd, name, fd, &self.id, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(Errno::EXIST) => Err(StateError::Exists(self.id.clone())),
            Err(e) => Err(io_error("create", self.path(), e.into())),
        }
    }

    /// The directory of `id`, which must exist.
    pub(crate) fn open(root: &Path, id: &str) -> Result<Self, StateError> {
        check_id(id)?;
        match Root::open(root, false) {
            Ok(root) => Self::open_in(&Arc::new(root), id),
            Err(error) if error.is_not_found() => Err(StateError::NotFound(id.to_owned())),
            Err(error) => Err(error),
        }
    }

    fn open_in(root: &Arc<Root>, id: &str) -> Result<Self, StateError> {
        match directory(&root.fd, id) {
            Ok(fd) => Ok(Self {
                root: Arc::clone(root),
                id: id.to_owned(),
                fd: Arc::new(fd),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StateError::NotFound(id.into())),
            Err(e) => Err(io_error("open", root.path.join(id), e)),
        }
    }

    /// The ids of all sandboxes below `root`, sorted; none when `root` is missing.
    pub(crate) fn list(root: &Path) -> Result<Vec<String>, StateError> {
        Ok(names(root)?
            .into_iter()
            .filter(|name| check_id(name).is_ok())
            .collect())
    }

    /// The names of directories below `root` that have no id; none when it is missing.
    pub(crate) fn nameless(root: &Path) -> Result<Vec<String>, StateError> {
        let mut names = names(root)?;
        names.retain(|name| name.starts_with(NAMELESS));
        Ok(names)
    }

    /// Removes one of those if nobody is at it: its maker, or remover, has died. Returns its path.
    pub(crate) fn collect_nameless(root: &Path, name: &str) -> Result<Option<PathBuf>, StateError> {
        let root = Arc::new(Root::open(root, false)?);
        let dir = match Self::open_in(&root, name) {
            Err(StateError::NotFound(_)) => return Ok(None),
            dir => dir?,
        };
        match dir.lock(Duration::ZERO) {
            Ok(()) => {}
            Err(StateError::Busy(_) | StateError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        }
        dismantle(&root, name, &dir.fd)?;
        Ok(Some(dir.path()))
    }

    /// Waits until nobody else is at the directory, at most for `patience`. It is this one's from then on, for as long as this or a clone of
    /// it is kept. An error if it has been removed meanwhile, whoever has its id now.
    pub(crate) fn lock(&self, patience: Duration) -> Result<(), StateError> {
        let failed = |e| io_error("lock", self.path(), e);
        if !lock_within(&self.fd, patience).map_err(failed)? {
            return Err(StateError::Busy(self.id.clone()));
        }
        if self.has_name(&self.id).map_err(failed)? {
            Ok(())
        } else {
            Err(StateError::NotFound(self.id.clone()))
        }
    }

    /// Whether `name` below the root is this directory, and not one that was made since.
    fn has_name(&self, name: &str) -> io::Result<bool> {
        let own = rustix::fs::fstat(&*self.fd)?;
        match rustix::fs::statat(&self.root.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok((named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The sandbox's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> PathBuf {
        self.root.path.join(&self.id)
    }

    /// The directory of all of them, without links.
    pub(crate) fn root(&self) -> &Path {
        &self.root.path
    }

    /// The directory the guest sees.
    pub(crate) fn shared(&self) -> PathBuf {
        self.path().join(SHARED)
    }

    /// An empty directory to mount something on for a moment, in a mount namespace of one's own.
    pub(crate) fn staging(&self) -> PathBuf {
        self.path().join(STAGING)
    }

    /// The socket of the Task API. A socket's address holds 108 bytes, a path below a root more.
    pub(crate) fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", self.fd.as_raw_fd()))
    }

    /// What the supervisor says when no log file was named, and its last words.
    pub(crate) fn log(&self) -> PathBuf {
        self.path().join(LOG)
    }

    /// Who made it.
    pub(crate) fn owner(&self) -> io::Result<u32> {
        Ok(rustix::fs::fstat(&*self.fd)?.st_uid)
    }

    /// Replaces the record.
    pub(crate) fn write(&self, record: &Record) -> Result<(), StateError> {
        let path = self.record_path();
        let boot_id = boot_id()?;
        let text = serde_json::to_vec(&Stored { boot_id, record }).map_err(|source| {
            StateError::Damaged {
                path: path.clone(),
                source,
            }
        })?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::openat(&*self.fd, NEW_RECORD, flags | OFlags::CLOEXEC, mode)
            .map_err(io::Error::from)
            .and_then(|file| File::from(file).write_all(&text))
            .and_then(|()| {
                Ok(rustix::fs::renameat(
                    &*self.fd, NEW_RECORD, &*self.fd, RECORD,
                )?)
            })
            .map_err(|e| io_error("write", &path, e))
    }

    /// The record, or None when there is none. One of an earlier boot names no process any more.
    pub(crate) fn read(&self) -> Result<Option<Record>, StateError> {
        let path = self.record_path();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut text = Vec::new();
        let read = rustix::fs::openat(&*self.fd, RECORD, flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| File::from(file).read_to_end(&mut text));
        match read {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("read", &path, e)),
        }
        let stored: Stored<Record> =
            serde_json::from_slice(&text).map_err(|source| StateError::Damaged { path, source })?;
        let is_of_this_boot = stored.boot_id == boot_id()?;
        Ok(Some(if is_of_this_boot {
            stored.record
        } else {
            stored.record.without_processes()
        }))
    }

    /// Removes the socket, whose server ends; one that is gone already is no error.
    pub(crate) fn remove_socket(&self) -> Result<(), StateError> {
        match rustix::fs::unlinkat(&*self.fd, SOCKET, AtFlags::empty()) {
            Err(e) if e != Errno::NOENT => {
                Err(io_error("remove", self.path().join(SOCKET), e.into()))
            }
            _ => Ok(()),
        }
    }

    /// Gives the id back and removes the directory with what this program has put there. To be called by who has the lock.
    pub(crate) fn remove(&self) -> Result<(), StateError> {
        let name = nameless()?;
        let fd = &self.root.fd;
        rustix::fs::renameat_with(fd, &self.id, fd, &name, RenameFlags::NOREPLACE)
            .map_err(|e| io_error("remove", self.path(), e.into()))?;
        dismantle(&self.root, &name, &self.fd)
    }

    fn record_path(&self) -> PathBuf {
        self.path().join(RECORD)
    }
}

impl StateError {
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Removes the directory `name`, which `fd` is, with all that this program puts there, and nothing else.
fn dismantle(root: &Root, name: &str, fd: &OwnedFd) -> Result<(), StateError> {
    let left = |name: &'static str, e: Errno, at: &str| StateError::Left {
        path: root.path.join(at),
        name,
        source: e.into(),
    };
    for (content, flags) in CONTENTS {
        match rustix::fs::unlinkat(fd, content, flags) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(left(content, e, name)),
        }
    }
    match rustix::fs::unlinkat(&root.fd, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(left("something", e, name)),
    }
}

/// The names of the directories below `root`, sorted; none when it is missing.
fn names(root: &Path) -> Result<Vec<String>, StateError> {
    let failed = |e| io_error("list", root, e);
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Opens a directory that is no link.
fn directory(at: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?)
}

/// Whether the directory is this one's from now on.
fn try_lock(fd: &OwnedFd) -> io::Result<bool> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Whether it is this one's after `patience` at the latest.
fn lock_within(fd: &OwnedFd, patience: Duration) -> io::Result<bool> {
    if try_lock(fd)? {
        return Ok(true);
    }
    if patience.is_zero() {
        return Ok(false);
    }
    // Waiting has no deadline of its own. A thread that has waited for nothing goes with the process, which gives up.
    let (tell, told) = mpsc::channel();
    let waiting = fd.try_clone()?;
    thread::Builder::new().name("lock".into()).spawn(move || {
        let lock = || rustix::fs::flock(&waiting, FlockOperation::LockExclusive);
        // Nobody is told who does not wait any more.
        let _ = tell.send(rustix::io::retry_on_intr(lock));
    })?;
    match told.recv_timeout(patience) {
        Ok(locked) => Ok(locked.map(|()| true)?),
        Err(_) => Ok(false),
    }
}

/// A name that is no id, and nobody's.
fn nameless() -> Result<String, StateError> {
    let mut number = [0; 8];
    rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| io_error("read", "the kernel's random numbers", e.into()))?;
    Ok(format!("{NAMELESS}{:016x}", u64::from_ne_bytes(number)))
}

fn boot_id() -> Result<String, StateError> {
    let text = fs::read_to_string(BOOT_ID).map_err(|e| io_error("read", BOOT_ID, e))?;
    Ok(text.trim().to_owned())
}

/// Letters, digits and `_ + , - .`, as runc has it; `.` and `..` are not names.
pub(crate) fn check_id(id: &str) -> Result<(), StateError> {
    let fits = (1..=ID_MAX_BYTES).contains(&id.len());
    let plain = id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"_+,-.".contains(&b));
    if fits && plain && id != "." && id != ".." {
        Ok(())
    } else {
        Err(StateError::InvalidId(id.to_owned()))
    }
}

fn io_error(action: &'static str, path: impl AsRef<OsStr>, source: io::Error) -> StateError {
    StateError::Io {
        action,
        path: PathBuf::from(path.as_ref()),
        source,
    }
}

#[cfg(test)]
mod tests;
