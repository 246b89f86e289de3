//! The socket by which a container's program says that it is ready, as `sd_notify(3)` does.
//!
//! A Unix socket on the share would be the host kernel's, to which a process of the guest cannot connect, so the
//! agent makes it. It lies in a directory of its own, which the container has as `/run/notify`, read-only. Only
//! that the program is ready is passed on, once; nothing of what the program writes leaves the guest. The socket is
//! read until the container is deleted: `sd_notify_barrier(3)` and later words must find a reader.
//!
//! Each socket has a thread of its own, which alone reads and closes it: a program can send descriptors along whose
//! closing takes as long as it likes, as that of a TCP connection that lingers.
//!
//! Fails when the directory, the socket or the thread cannot be made.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};

use super::News;
use crate::log::debug;
use crate::plan::{Mount, MountKind};

/// Where the directories are, by number.
const DIRECTORY: &str = "/run/husk/notify";
/// The socket in it; husk's command line tells the container so.
const SOCKET: &str = "notify.sock";
/// Of one datagram, as runc reads them; the rest is dropped.
const DATAGRAM_MAX: usize = 4096;
/// After so many datagrams the reader rests for [`REST`]: it has the agent's CPU, which a program must not take.
const DATAGRAMS_MAX: usize = 1024;
const REST: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Has the socket read, until it is dropped.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    directory: PathBuf,
    /// Closed, it ends the reader, which may be some time after.
    _reading: OwnedFd,
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
        let (ended, reading) = pipe_with(PipeFlags::CLOEXEC)?;
        let (id, tell) = (id.to_owned(), tell.clone());
        thread::Builder::new()
            .name("notify".to_owned())
            .spawn(move || {
                let told = id.clone();
                // The sandbox is gone only when the machine goes down.
                let ready = move || drop(tell.send(News::Notified { id: told }));
                if let Err(error) = hear(&socket, &ended, ready) {
                    debug!("{id}: the notify socket is lost: {error}");
                }
            })?;
        mount.kind = MountKind::Bind {
            source: directory.clone(),
            recursive: false,
        };
        Ok(Some(Self {
            directory,
            _reading: reading,
        }))
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
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

/// Calls `ready` when the program has said that it is, and goes on reading until the other end of `ended` is closed.
/// Descriptors that come with a datagram are dropped by the kernel, which is the answer to `sd_notify_barrier(3)`.
fn hear(socket: &UnixDatagram, ended: &OwnedFd, ready: impl FnOnce()) -> io::Result<()> {
    let mut ready = Some(ready);
    let mut bytes = [0; DATAGRAM_MAX];
    socket.set_nonblocking(true)?;
    loop {
        for _ in 0..DATAGRAMS_MAX {
            let mut awaited = [
                PollFd::new(socket, PollFlags::IN),
                PollFd::new(ended, PollFlags::IN),
            ];
            retry_on_intr(|| poll(&mut awaited, None))?;
            if !awaited[1].revents().is_empty() {
                return Ok(());
            }
            let length = match socket.recv(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                received => received?,
            };
            if is_ready(&bytes[..length])
                && let Some(ready) = ready.take()
            {
                ready();
            }
        }
        let mut awaited = [PollFd::new(ended, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut awaited, Some(&REST)))? != 0 {
            return Ok(());
        }
    }
}

fn is_ready(datagram: &[u8]) -> bool {
    let mut lines = datagram.split(|byte| *byte == b'\n');
    lines.any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it was told that the program is ready, which wrote these datagrams.
    fn heard(datagrams: &[&[u8]]) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let socket = listen(folder.path()).unwrap();
        let path = folder.path().join(SOCKET);
        let (ended, reading) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| hear(&socket, &ended, || tell.send(()).unwrap()).unwrap());
            let program = UnixDatagram::unbound().unwrap();
            for datagram in datagrams {
                program.send_to(datagram, &path).unwrap();
            }
            // Who sends a descriptor along learns by its end that all before has been read.
            let (heard, barrier) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            send_with(&program, &path, barrier);
            poll(&mut [PollFd::new(&heard, PollFlags::IN)], None).unwrap();
            drop(reading);
        });
        told.try_iter().count()
    }

    fn send_with(program: &UnixDatagram, path: &Path, descriptor: OwnedFd) {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
        use std::os::fd::AsFd as _;
        program.connect(path).unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let words = [io::IoSlice::new(b"BARRIER=1")];
        rustix::net::sendmsg(program, &words, &mut control, SendFlags::empty()).unwrap();
        drop(descriptor);
    }

    #[test]
    fn a_program_is_ready_once_when_it_says_so_and_not_when_it_says_something_else() {
        let said: [&[u8]; 4] = [b"STATUS=READY=1", b"READY=0", b"X=1\nREADY=1\n", b"READY=1"];
        assert_eq!(heard(&said), 1);
        assert_eq!(heard(&[b"READY=10"]), 0);
        let long = [&[b'x'; DATAGRAM_MAX][..], b"\nREADY=1"].concat();
        assert_eq!(heard(&[&long]), 0);
    }

    #[test]
    fn it_is_heard_after_a_flood() {
        let mut flood = vec![&b"STATUS=busy"[..]; DATAGRAMS_MAX + 1];
        flood.push(b"READY=1");
        assert_eq!(heard(&flood), 1);
    }
}
