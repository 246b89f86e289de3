//! What the rest of the host sees of a container behind the pid that is reported for it: a mount namespace with the container's root
//! file system and volumes, the container's network namespace, and nothing of the host's.
//!
//! ```text
//!   main thread     waits ── enters the network ── waits ── a container is made ─► enters its view ── waits ─► ends with the other's result
//!   second thread   the supervisor, with the host's view ───────────────────────────────────────────────► ends
//! ```
//!
//! Engines enter the mount namespace of a running container to copy files (`podman cp`), and their hooks set up what they find behind
//! `/proc/PID/ns/net`; the namespaces of a process are its main thread's. The guest's own file systems (tmpfs, proc, sysfs) are not
//! in there. Ways to fail: the kernel refuses a namespace or a mount; then there is no container.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags};
use tokio::sync::oneshot;

/// To show a container by; in the second thread.
#[derive(Clone, Debug)]
pub(crate) struct Face(mpsc::Sender<Order>);

/// What is to be seen.
#[derive(Debug)]
pub(crate) struct View {
    /// The root file system, as a mount that is attached nowhere.
    pub(crate) rootfs: OwnedFd,
    /// The same of each volume, and where it is in the container.
    pub(crate) volumes: Vec<(OwnedFd, PathBuf)>,
    /// A directory to build it on.
    pub(crate) staging: PathBuf,
}

/// What the main thread is told to enter, and where it says how that went.
type Order = (Part, oneshot::Sender<io::Result<()>>);

#[derive(Debug)]
enum Part {
    /// The network namespace; without a path, a new one.
    Network(Option<PathBuf>),
    View(View),
}

impl Face {
    /// Shows a network namespace from now on: the one at `path`, or a new one. For hooks, which run before there is a container.
    pub(crate) async fn show_network(&self, path: Option<PathBuf>) -> io::Result<()> {
        self.order(Part::Network(path)).await
    }

    /// Shows `view` from now on. The guest has made the places of its volumes.
    pub(crate) async fn show(&self, view: View) -> io::Result<()> {
        self.order(Part::View(view)).await
    }

    async fn order(&self, part: Part) -> io::Result<()> {
        let gone = || io::Error::other("the main thread is gone");
        let (done, shown) = oneshot::channel();
        self.0.send((part, done)).map_err(|_| gone())?;
        shown.await.map_err(|_| gone())?
    }
}

/// Runs `supervisor` in a second thread, while this one shows what it is told. Returns the other one's result.
pub(crate) fn while_shown<T: Send + 'static>(
    supervisor: impl FnOnce(Face) -> T + Send + 'static,
) -> io::Result<T> {
    let (face, orders) = mpsc::channel::<Order>();
    let thread = thread::Builder::new()
        .name("supervisor".into())
        .spawn(move || supervisor(Face(face)))?;
    // Ends with the last sender, which is the other thread's.
    for (part, done) in orders {
        let entered = match part {
            Part::Network(path) => enter_network(path.as_deref()),
            Part::View(view) => enter(&view),
        };
        // Whoever asked may have given up.
        let _ = done.send(entered);
    }
    thread
        .join()
        .map_err(|_| io::Error::other("the supervisor panicked"))
}

fn enter_network(path: Option<&Path>) -> io::Result<()> {
    match path {
        Some(path) => nix::sched::setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?,
        None => nix::sched::unshare(CloneFlags::CLONE_NEWNET)?,
    }
    Ok(())
}

/// Makes this thread's mount namespace one of its own, with nothing but `view`.
fn enter(view: &View) -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    // What goes from here must not go from the supervisor's namespace.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave)?;
    let itself = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&view.rootfs, "", CWD, &view.staging, itself)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, &view.staging, flags, Mode::empty())?;
    for (volume, destination) in &view.volumes {
        add(&root, volume, destination)?;
    }
    rustix::process::fchdir(&root)?;
    nix::unistd::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Mounts a volume where the guest has it. One that is below a file system of the guest's own has no place here.
fn add(root: &OwnedFd, volume: &OwnedFd, destination: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, destination, flags, Mode::empty(), resolve) {
        Ok(target) => {
            let both =
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            Ok(rustix::mount::move_mount(volume, "", &target, "", both)?)
        }
        Err(error) => {
            tracing::debug!("the volume {} is not shown: {error}", destination.display());
            Ok(())
        }
    }
}
