//! virtio-fs: a directory of the host as a file system of the guest (virtio 1.2, section 5.11).
//!
//! ```text
//!   hiprio queue (FORGET) ──┐                              ┌─ names: one component, never `..`
//!                           ├─► worker ─► view ─► server ─► share ─► virtiofsd's passthrough ─► files below the root
//!   request queue (FUSE) ───┘   (1 thread)                 └─ policy: what may be cached, how many inodes
//! ```
//!
//! **When files are opened.** [`Fs::new`] opens nothing, so it may be called before the jail is entered; the descriptor of `/proc/self/fd` it is
//! given must come from before. The root is opened by the worker, when the device is first started and at every INIT, by the path the thread
//! sees then: inside a jail that is `/`. [`crate::Device::start`] therefore comes after the jail.
//!
//! **One thread.** Requests run one after another, as on one CPU. A second thread would need locks nobody else needs and its own stack and
//! credentials; a sandbox whose files are slow waits for them either way. A `fsync` delays what comes after it, nothing else in the machine.
//!
//! **Life.** A session begins at INIT and ends at DESTROY, at a reset, and with the process. Stopped, a device keeps its session and goes on
//! with it when it is started again from what [`crate::Device::stop`] returned. Inodes and open files are descriptors of this process, so in
//! another one a session goes on only if the guest has mounted the share and holds nothing of it: that is how a template is made.
//!
//! **Ways to fail.** A chain that does not lie in memory, or rings that lie, stop the device (`DEVICE_NEEDS_RESET`). Everything else a guest can
//! send is answered with an errno; a root that cannot be opened is the errno of INIT. On the host: a mount below the share is busy while the guest holds
//! inodes of it, which is while files of it are open and some seconds longer.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::{io, mem};

use rustix::process::{Resource, getrlimit};

use crate::device::read_config_bytes;
use crate::saved::SavedDevice;
use crate::worker::{Handler, Poller, Worker};
use crate::{Device, GuestMemory, Queue, QueueError, Resources, StartError, Stopped, Traits};

/// Which extended attributes are whose.
mod attributes;
/// The server without queues, for fuzzing.
#[cfg(fuzzing)]
pub mod fuzzing;
/// The open file behind a handle.
mod lent;
/// What was read of a directory and not yet told.
mod listing;
/// The messages about locks.
mod locking;
/// Who has locked what.
mod locks;
/// Which names a guest may use.
mod names;
/// What a guest may remember.
mod policy;
/// Locks of an open file.
#[expect(unsafe_code, reason = "fcntl, with a record that is borrowed for it")]
mod record;
/// A session's INIT, said again to a new server.
mod replay;
/// One FUSE message in, one out.
mod server;
/// The shared directory.
mod share;
/// A thread's own working directory and umask.
#[expect(unsafe_code, reason = "unshare, of what cannot break memory safety")]
mod thread;
/// The message that makes a file without a name.
mod tmpfile;
/// The share's own file system, told from mounts below it.
mod top;
/// Files without a name.
mod unnamed;
/// Guest memory in the type virtiofsd wants.
#[expect(
    unsafe_code,
    reason = "a second description of mappings that stay alive beside it"
)]
mod view;

use server::Server;
use share::{Limits, Share};
use view::View;

#[cfg(test)]
mod tests;

/// The virtio device id of a file system.
const DEVICE_ID: u32 = 26;
/// Bytes for the tag in the configuration space (section 5.11.4).
const TAG_BYTES: usize = 36;
const CONFIG_BYTES: usize = TAG_BYTES + 4;
const THREAD: &str = "fs";
/// Queues of requests, beside the first queue, hiprio, of messages that must not wait behind requests.
const REQUEST_QUEUES: u32 = 1;
const QUEUES: usize = 2;
/// FORGETs are small and answered at once. A request of 1 MiB is 258 descriptors, and Linux allows none larger than a queue even where it puts
/// them in an indirect table.
const QUEUE_SIZES: &[u16; QUEUES] = &[128, 512];
/// Chains taken from one queue before the other queue, and an order to stop, are looked at.
const TURN_CHAINS_MAX: usize = 32;

/// Descriptors a guest may make this process hold, inodes and open files together, whatever
/// `RLIMIT_NOFILE` says. Measured, an inode is half a KiB here and one and a half in the host's
/// kernel, so this is 128 MiB, charged to the sandbox. A guest that walks through more files than
/// half of this gives them back and looks them up again; only one that holds more open at once is
/// refused.
const GUEST_DESCRIPTORS_MAX: u64 = 64 * 1024;
/// Descriptors kept back for the VMM itself and for the moment of an operation.
const OWN_DESCRIPTORS: u64 = 256;

/// What a file system device needs to know.
#[derive(Debug)]
pub struct FsConfig {
    /// The name by which the guest mounts it, 1 to 36 bytes.
    pub tag: String,
    /// The shared directory, as the device's thread sees it once it runs: `/` inside a jail.
    pub root: String,
    /// This process's `/proc/self/fd`, opened with `O_PATH` where `/proc` still was. It names the process for good: open it after the last fork.
    pub proc_self_fd: OwnedFd,
}

/// A device that cannot be made as configured.
#[derive(Debug, thiserror::Error)]
#[error("the tag of a share must have 1 to {TAG_BYTES} bytes")]
pub struct FsConfigError;

/// The device.
#[derive(Debug)]
pub struct Fs {
    config_space: [u8; CONFIG_BYTES],
    root: Root,
    /// While stopped in the middle of a session: the server, and the number of that stop.
    paused: Option<(Box<Server>, u64)>,
    /// How often the device was stopped so.
    pauses: u64,
    worker: Option<Worker<FsWorker>>,
}

/// How far the session is when the worker starts.
#[derive(Debug)]
enum Session {
    /// There is none, and no server.
    None,
    /// Another process served it. The guest has done no more than this INIT.
    Begun(Vec<u8>),
    /// Served here.
    Served(Box<Server>),
}

/// What is shared.
#[derive(Clone, Debug)]
struct Root {
    path: String,
    proc_self_fd: Arc<OwnedFd>,
    /// There are no levels of the supervisor's in it.
    #[cfg(any(test, feature = "testing"))]
    of_guest: bool,
}

impl Fs {
    /// A stopped device. Opens nothing.
    pub fn new(config: FsConfig) -> Result<Self, FsConfigError> {
        let tag = config.tag.as_bytes();
        if tag.is_empty() || tag.len() > TAG_BYTES {
            return Err(FsConfigError);
        }
        let mut config_space = [0; CONFIG_BYTES];
        config_space[..tag.len()].copy_from_slice(tag);
        config_space[TAG_BYTES..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        Ok(Self {
            config_space,
            root: Root {
                path: config.root,
                proc_self_fd: Arc::new(config.proc_self_fd),
                #[cfg(any(test, feature = "testing"))]
                of_guest: false,
            },
            paused: None,
            pauses: 0,
            worker: None,
        })
    }

    /// A device whose whole directory is the guest's: for tests of what happens below the
    /// supervisor's levels, which can mount nothing.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn of_guest(mut self) -> Self {
        self.root.of_guest = true;
        self
    }

    /// The session that `saved` belongs to; a reset ends any.
    fn take_session(&mut self, saved: SavedDevice) -> Result<Session, StartError> {
        match (saved, self.paused.take()) {
            (SavedDevice::Fresh, _) => Ok(Session::None),
            (SavedDevice::FsSession { pause, .. }, Some((server, number))) if pause == number => {
                Ok(Session::Served(server))
            }
            (
                SavedDevice::FsSession {
                    init: Some(init), ..
                },
                None,
            ) => Ok(Session::Begun(init)),
            (_, paused) => {
                self.paused = paused;
                Err(StartError::WrongState)
            }
        }
    }
}

impl Device for Fs {
    fn traits(&self) -> Traits {
        Traits {
            id: DEVICE_ID,
            features: 0,
            queue_sizes: QUEUE_SIZES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config_space, offset, data);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let session = self.take_session(mem::take(&mut resources.saved))?;
        let queues = [resources.take_queue(0)?, resources.take_queue(1)?];
        let view =
            View::new(Arc::clone(&resources.memory)).map_err(|error| StartError::Worker {
                name: THREAD,
                source: io::Error::other(error),
            })?;
        let worker = FsWorker {
            queues,
            memory: resources.memory,
            view,
            root: self.root.clone(),
            session,
        };
        let spawned = Worker::spawn(THREAD, worker, resources.confine, resources.failure);
        let worker = spawned.map_err(|failed| {
            if let Session::Served(server) = failed.handler.session {
                self.paused = Some((server, self.pauses));
            }
            failed.error
        })?;
        self.worker = Some(worker);
        Ok(())
    }

    fn stop(&mut self) -> Option<Stopped> {
        let worker = self.worker.take()?.stop()?;
        let saved = match worker.session {
            Session::Served(server) if server.in_session() => {
                self.pauses += 1;
                let init = server.init().map(<[u8]>::to_vec);
                self.paused = Some((server, self.pauses));
                SavedDevice::FsSession {
                    pause: self.pauses,
                    init,
                }
            }
            _ => SavedDevice::Fresh,
        };
        Some(Stopped {
            queues: worker
                .queues
                .iter()
                .map(|queue| Some(queue.state()))
                .collect(),
            saved,
        })
    }
}

/// Why the worker gives up.
#[derive(Debug, thiserror::Error)]
enum FsError {
    #[error("give the thread a working directory and a umask of its own")]
    Thread(#[source] io::Error),
    #[error("set up the file server")]
    SetUp(#[source] io::Error),
    #[error("wait for a queue")]
    Wait(#[source] io::Error),
    #[error("serve a queue")]
    Queue(#[from] QueueError),
}

#[derive(Debug)]
struct FsWorker {
    /// Hiprio and requests.
    queues: [Queue; QUEUES],
    memory: Arc<GuestMemory>,
    view: View,
    root: Root,
    /// Served once the thread runs.
    session: Session,
}

impl Handler for FsWorker {
    type Error = FsError;

    fn register(&mut self, poller: &Poller) -> Result<(), FsError> {
        thread::own_directory_and_umask().map_err(FsError::Thread)?;
        self.session = Session::Served(self.serve().map_err(FsError::SetUp)?);
        for (token, queue) in (0..).zip(&self.queues) {
            poller.add(queue.kick(), token).map_err(FsError::Wait)?;
            // What was offered before is looked at, kicked or not.
            queue.kick().signal().map_err(FsError::Wait)?;
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, _poller: &Poller) -> Result<(), FsError> {
        let queue = usize::try_from(token)
            .ok()
            .and_then(|index| self.queues.get_mut(index));
        let (Some(queue), Session::Served(server)) = (queue, &mut self.session) else {
            return Ok(());
        };
        queue.acknowledge_kick()?;
        for _ in 0..TURN_CHAINS_MAX {
            let Some(chain) = queue.next(&self.memory)? else {
                if queue.rearm(&self.memory)? {
                    continue;
                }
                return Ok(());
            };
            let head = chain.head();
            let (reader, writer) = self.view.streams(&chain)?;
            let written = server.answer(reader, writer);
            let written = u32::try_from(written).map_err(|_| QueueError::BadChain { head })?;
            queue.complete(&self.memory, head, written)?;
            queue.notify(&self.memory)?;
        }
        queue.kick().signal().map_err(FsError::Wait)
    }
}

impl FsWorker {
    /// A server in the state of the session.
    fn serve(&mut self) -> io::Result<Box<Server>> {
        match mem::replace(&mut self.session, Session::None) {
            Session::None => new_server(&self.root).map(Box::new),
            Session::Begun(init) => {
                let mut server = Box::new(new_server(&self.root)?);
                replay::begin_again(&mut server, &init, self.queues[0].kick())?;
                Ok(server)
            }
            Session::Served(server) => Ok(server),
        }
    }
}

/// A server with as many descriptors for the guest as the process's limit leaves.
fn new_server(root: &Root) -> io::Result<Server> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let descriptors = limit
        .saturating_sub(OWN_DESCRIPTORS)
        .min(GUEST_DESCRIPTORS_MAX);
    let limits = Limits {
        descriptors,
        kept_inodes: usize::try_from(descriptors / 2).unwrap_or(usize::MAX),
    };
    let proc_self_fd = File::from(root.proc_self_fd.try_clone()?);
    let share = Share::new(&root.path, proc_self_fd, limits)?;
    #[cfg(any(test, feature = "testing"))]
    let share = if root.of_guest {
        share.of_guest()
    } else {
        share
    };
    Ok(Server::new(share))
}
