//! Memory that containers share as files: one tmpfs for each name, as the `/dev/shm` of a pod.
//!
//! The first container that asks for a name has it made, and all that ask for it bind it. It stays as long as the machine, as on a host it would as long
//! as the pod.
//!
//! Fails when the kernel cannot mount it, or a caller asks for more than a pod can need.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};

use super::SandboxError;
use crate::plan::{Mount, MountKind};

/// Where they are mounted, by number.
const DIRECTORY: &str = "/run/husk/memory";
/// A pod has one; each is a mount that every new container copies and lets go.
const MEMORIES_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Memories(HashMap<String, PathBuf>);

impl Memories {
    /// Turns the mounts of shared memory into binds.
    pub(super) fn bind(&mut self, mounts: &mut [Mount]) -> Result<(), SandboxError> {
        for mount in mounts {
            if let MountKind::Shared { name, options } = &mount.kind {
                let source = self.place(name, options);
                mount.kind = MountKind::Bind {
                    source: source.map_err(super::io("cannot make shared memory"))?,
                    recursive: false,
                };
            }
        }
        Ok(())
    }

    fn place(&mut self, name: &str, options: &str) -> io::Result<PathBuf> {
        if let Some(place) = self.0.get(name) {
            return Ok(place.clone());
        }
        if self.0.len() == MEMORIES_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let place = Path::new(DIRECTORY).join(self.0.len().to_string());
        fs::create_dir_all(&place)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let options = std::ffi::CString::new(options)?;
        mount("shm", &place, "tmpfs", flags, Some(options.as_c_str()))?;
        self.0.insert(name.to_owned(), place.clone());
        Ok(place)
    }
}
