//! The socket by which a container's program says that it is ready, as `sd_notify(3)` does.
//!
//! A Unix socket on the share would be the host kernel's, to which a process of the guest cannot connect, so the
//! agent makes it. It lies in a directory of its own, which the container has as `/run/notify`, read-only. Only
//! that the program is ready is passed on, once; then the socket is closed. Nothing of what the
//! program writes leaves the guest.
//!
//! Fails when the directory or the socket cannot be made.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::net::UnixDatagram;
use tokio::task::AbortHandle;

use super::News;
use crate::log::debug;
use crate::plan::{Mount, MountKind};

/// Where the directories are, by number.
const DIRECTORY: &str = "/run/husk/notify";
/// The socket in it; husk's command line tells the container so.
const SOCKET: &str = "notify.sock";
/// Of one datagram, as runc reads them; the rest is dropped.
const DATAGRAM_MAX: usize = 4096;
/// A program that says so much else before it is ready is not listened to any more: it has the agent's CPU.
const DATAGRAMS_MAX: usize = 1024;

/// Has the socket, until it is dropped.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    directory: PathBuf,
    listener: AbortHandle,
}

impl NotifySocket {
    /// Makes the one that a container's mounts ask for, and turns that mount into a bind. What the program says comes
    /// to `tell`, as news of container `id`.
    pub(super) fn bind(
        mounts: &mut [Mount],
        number: u64,
        id: &str,
        tell: &tokio::sync::mpsc::UnboundedSender<News>,
    ) -> io::Result<Option<Self>> {
        let Some(mount) = mounts
            .iter_mut()
            .find(|mount| mount.kind == MountKind::Notify)
        else {
            return Ok(None);
        };
        let directory = Path::new(DIRECTORY).join(number.to_string());
        fs::create_dir_all(&directory)?;
        let socket = listen(&directory)?;
        let (id, tell) = (id.to_owned(), tell.clone());
        let listener = tokio::spawn(async move {
            match hear(&socket).await {
                // The sandbox is gone only when the machine goes down.
                Ok(true) => drop(tell.send(News::Notified { id })),
                Ok(false) => debug!("{id}: it said too much before it was ready"),
                Err(error) => debug!("{id}: the notify socket is lost: {error}"),
            }
        });
        mount.kind = MountKind::Bind {
            source: directory.clone(),
            recursive: false,
        };
        Ok(Some(Self {
            directory,
            listener: listener.abort_handle(),
        }))
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        self.listener.abort();
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            debug!("{}: {error}", self.directory.display());
        }
    }
}

/// Anybody in the container may write to it.
fn listen(directory: &Path) -> io::Result<UnixDatagram> {
    let path = directory.join(SOCKET);
    let socket = UnixDatagram::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o777))?;
    Ok(socket)
}

/// Waits until the program has said that it is ready; false: it says too much else. Descriptors that come with a
/// datagram are dropped by the kernel, which is the answer to `sd_notify_barrier(3)`.
async fn hear(socket: &UnixDatagram) -> io::Result<bool> {
    let mut bytes = [0; DATAGRAM_MAX];
    for _ in 0..DATAGRAMS_MAX {
        let length = socket.recv(&mut bytes).await?;
        if is_ready(&bytes[..length]) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_ready(datagram: &[u8]) -> bool {
    let mut lines = datagram.split(|byte| *byte == b'\n');
    lines.any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn heard(datagrams: &[&[u8]]) -> io::Result<bool> {
        let folder = tempfile::tempdir()?;
        let socket = listen(folder.path())?;
        let path = folder.path().join(SOCKET);
        let (listened, said) = tokio::join!(hear(&socket), async {
            let program = UnixDatagram::unbound()?;
            for datagram in datagrams {
                program.send_to(datagram, &path).await?;
            }
            Ok::<_, io::Error>(())
        });
        said?;
        listened
    }

    #[tokio::test]
    async fn a_program_is_ready_when_it_says_so_and_not_when_it_says_something_else() {
        let said: [&[u8]; 3] = [b"STATUS=READY=1", b"READY=0", b"X=1\nREADY=1\n"];
        assert!(heard(&said).await.unwrap());
        let flood = vec![&b"READY=10"[..]; DATAGRAMS_MAX];
        assert!(!heard(&flood).await.unwrap());
        let long = [&[b'x'; DATAGRAM_MAX][..], b"\nREADY=1"].concat();
        assert!(heard(&[&long, b"READY=1"]).await.unwrap());
        assert!(!is_ready(&long[..DATAGRAM_MAX]));
    }
}
