//! Tells when a container's `memory.events` has changed.
//!
//! The file's counters are raised before the kernel kills; whoever learns of an exit first reads them too.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::watch::watch;

/// One inotify instance for all containers.
#[derive(Debug)]
pub(crate) struct OomWatch {
    inotify: AsyncFd<OwnedFd>,
    containers: HashMap<i32, String>,
}

impl OomWatch {
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = watch(
            init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            Interest::READABLE,
        )?;
        Ok(Self {
            inotify,
            containers: HashMap::new(),
        })
    }

    /// Watches the cgroup of a container.
    pub(crate) fn add(&mut self, container: &str, cgroup: &Path) -> io::Result<()> {
        let watch = add_watch(
            self.inotify.get_ref(),
            cgroup.join("memory.events"),
            WatchFlags::MODIFY,
        )?;
        self.containers.insert(watch, container.to_owned());
        Ok(())
    }

    /// Forgets a container.
    pub(crate) fn remove(&mut self, container: &str) {
        self.containers.retain(|watch, name| {
            let keep = name != container;
            if !keep {
                // The kernel has removed the watch already where the cgroup is gone.
                let _ = remove_watch(self.inotify.get_ref(), *watch);
            }
            keep
        });
    }

    /// A container whose events have changed.
    pub(crate) async fn changed(&mut self) -> io::Result<String> {
        loop {
            let mut guard = self.inotify.readable().await?;
            let next = guard.try_io(|inotify| {
                let mut space = [MaybeUninit::uninit(); 64];
                let mut reader = Reader::new(inotify.get_ref(), &mut space);
                Ok(reader.next()?.wd())
            });
            if let Ok(watch) = next
                && let Some(container) = self.containers.get(&watch?)
            {
                return Ok(container.clone());
            }
        }
    }
}
