//! The standard streams of a process: pipes, or the master of a terminal, pumped to and from the host's connections.
//!
//! A process gets pipes, not sockets, because `/dev/stdout` must be openable. Half-closes travel both ways:
//!
//! ```text
//! host closes its side of stdin   ─► the pipe's write end is closed   ─► the process reads end-of-file
//! the process closes stdout       ─► the connection is shut for writing ─► the host reads end-of-file
//! host drops the stdout connection ─► the pipe's read end is closed   ─► the process gets SIGPIPE
//! the process closes stdin        ─► the connection is dropped        ─► the host's write fails
//! ```
//!
//! Nothing is read that cannot be passed on: a slow reader stops the writer. A stream that nobody opens is one that has ended. No
//! process waits for its streams, and no exit status does.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use rustix::fs::{Gid, OFlags, Uid, fchown, fcntl_setfl};
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::streams::Claim;
use crate::transport::Socket;
use crate::watch::watch;

/// Bytes in flight per direction; the capacity of a pipe, so that one pass empties it.
const BUFFER_SIZE: usize = 64 * 1024;

/// The process's ends; `/dev/null` takes the place of what is missing.
#[derive(Debug, Default)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// The reading end of an output's pipe, and how much has been taken out of it.
#[derive(Debug)]
pub(crate) struct OutputPipe {
    pipe: AsyncFd<OwnedFd>,
    taken: AtomicU64,
}

/// What a process's output has carried; for as long as its pipe is there.
#[derive(Debug, Default)]
pub(crate) struct Meter(Weak<OutputPipe>);

/// Of both outputs of a process.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    pub(crate) stdout: Meter,
    pub(crate) stderr: Meter,
}

impl Meter {
    /// Bytes that have been written so far; none where the stream has ended, or there is none.
    pub(crate) fn written(&self) -> Option<u64> {
        let output = self.0.upgrade()?;
        let waiting = rustix::io::ioctl_fionread(output.pipe.get_ref()).ok()?;
        Some(output.taken.load(Ordering::Relaxed).saturating_add(waiting))
    }
}

/// The streams that a process is to have.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pub(crate) stdin: Option<Claim>,
    pub(crate) stdout: Option<Claim>,
    pub(crate) stderr: Option<Claim>,
}

/// Makes the pipes and starts their pumps; both outputs can be measured. `owner` is the process's user outside its user namespace: what it has open it may reopen.
pub(crate) fn pipes(claims: Claims, owner: (u32, u32)) -> io::Result<(ChildStdio, Meters)> {
    let (mut stdio, mut meters) = (ChildStdio::default(), Meters::default());
    if let Some(claim) = claims.stdin {
        let (process, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        give(&process, owner)?;
        let ours = nonblocking(ours, Interest::WRITABLE | Interest::ERROR)?;
        tokio::spawn(pump_in(claim, ours));
        stdio.stdin = Some(process);
    }
    for (claim, end, meter) in [
        (claims.stdout, &mut stdio.stdout, &mut meters.stdout),
        (claims.stderr, &mut stdio.stderr, &mut meters.stderr),
    ] {
        if let Some(claim) = claim {
            let (ours, process) = pipe_with(PipeFlags::CLOEXEC)?;
            give(&process, owner)?;
            let output = Arc::new(OutputPipe {
                pipe: nonblocking(ours, Interest::READABLE)?,
                taken: AtomicU64::new(0),
            });
            *meter = Meter(Arc::downgrade(&output));
            tokio::spawn(pump_out(claim, output));
            *end = Some(process);
        }
    }
    Ok((stdio, meters))
}

/// Takes the master of a terminal and starts its pump, which alone keeps it open.
pub(crate) fn terminal(claim: Option<Claim>, master: OwnedFd) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
    let master = Arc::new(nonblocking(
        master,
        Interest::READABLE | Interest::WRITABLE,
    )?);
    tokio::spawn(pump_terminal(claim, Arc::clone(&master)));
    Ok(master)
}

fn give(end: &OwnedFd, (uid, gid): (u32, u32)) -> io::Result<()> {
    Ok(fchown(
        end,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
    )?)
}

/// Only this end: the flag belongs to the open file, and the process has the other one.
fn nonblocking(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    fcntl_setfl(&fd, OFlags::NONBLOCK)?;
    watch(fd, interest)
}

async fn pump_in(claim: Claim, pipe: AsyncFd<OwnedFd>) {
    let Ok(socket) = claim.await else { return };
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let count = tokio::select! {
            read = read(&socket, &mut buffer) => read,
            // The last reader of the pipe is gone.
            _ = pipe.ready(Interest::ERROR) => return,
        };
        match count {
            Ok(count) if count > 0 => {
                if write_all(&pipe, &buffer[..count]).await.is_err() {
                    return;
                }
            }
            // The end, or a host that is gone: the same to the process.
            _ => return,
        }
    }
}

async fn pump_out(claim: Claim, output: Arc<OutputPipe>) {
    let Ok(socket) = claim.await else { return };
    let mut buffer = vec![0; BUFFER_SIZE];
    let mut reader_there = true;
    loop {
        let count = tokio::select! {
            count = read(&output.pipe, &mut buffer) => count,
            gone = reader_gone(&socket), if reader_there => {
                if gone {
                    return;
                }
                reader_there = false;
                continue;
            }
        };
        match count {
            Ok(count) if count > 0 => {
                // Before anything else is waited for: what is neither in the pipe nor counted would be lost to the meter.
                let taken = u64::try_from(count).unwrap_or(u64::MAX);
                output.taken.fetch_add(taken, Ordering::Relaxed);
                if write_all(&socket, &buffer[..count]).await.is_err() {
                    return;
                }
            }
            _ => break,
        }
    }
    finish(&socket);
}

async fn pump_terminal(claim: Option<Claim>, master: Arc<AsyncFd<OwnedFd>>) {
    let Some(claim) = claim else {
        return drain(&master).await;
    };
    let Ok(socket) = claim.await else { return };
    let output = async {
        let mut buffer = vec![0; BUFFER_SIZE];
        // A terminal that everybody has closed reads as an error (EIO): its end.
        while let Ok(count) = read(&master, &mut buffer).await {
            if count == 0 || write_all(&socket, &buffer[..count]).await.is_err() {
                break;
            }
        }
        finish(&socket);
    };
    let input = async {
        let mut buffer = vec![0; BUFFER_SIZE];
        while let Ok(count) = read(&socket, &mut buffer).await {
            if count == 0 {
                // No more keys. Whether somebody still looks at the screen is another question.
                return is_gone(&socket);
            }
            if write_all(&master, &buffer[..count]).await.is_err() {
                return false;
            }
        }
        true
    };
    tokio::pin!(output);
    tokio::select! {
        () = &mut output => {}
        gone = input => {
            if !gone {
                output.await;
            }
        }
    }
}

/// Reads and forgets, so that a process without an onlooker does not stop.
async fn drain(master: &AsyncFd<OwnedFd>) {
    let mut buffer = vec![0; BUFFER_SIZE];
    while matches!(read(master, &mut buffer).await, Ok(count) if count > 0) {}
}

fn finish(socket: &Socket) {
    // A host that has gone needs no end-of-file.
    let _ = shutdown(socket.get_ref(), Shutdown::Write);
}

/// Waits until the host has closed its sending side, which it does not use here, and tells whether it has gone altogether.
async fn reader_gone(socket: &Socket) -> bool {
    let mut ignored = [0; 64];
    loop {
        match read(socket, &mut ignored).await {
            Ok(0) => return is_gone(socket),
            Ok(_) => {}
            Err(_) => return true,
        }
    }
}

/// Nothing can be sent to a host that has closed both ways; trying with no bytes tells.
fn is_gone(socket: &Socket) -> bool {
    send(
        socket.get_ref(),
        &[],
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )
    .is_err()
}

/// Reads what is there, waiting for something; 0 at the end.
pub(crate) async fn read(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = fd.readable().await?;
        match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?)) {
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// Writes everything.
async fn write_all(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = fd.writable().await?;
        match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref().as_fd(), bytes)?)) {
            Ok(count) => bytes = &bytes[count?..],
            Err(_would_block) => {}
        }
    }
    Ok(())
}
