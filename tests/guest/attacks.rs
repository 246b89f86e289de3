//! What a container tries against the agent and its neighbours. An attack that comes to nothing holds; one that gains
//! something is an error that says what.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::MountFlags;

use crate::checks::Check;
use crate::raw;

/// All of them.
pub(crate) const ALL: &[Check] = &[
    ("power-port", power_port),
    ("stream-port", stream_port),
    ("control-port", control_port),
    ("agent-program", agent_program),
    ("cgroup-flood", cgroup_flood),
    ("thread-bomb", thread_bomb),
    ("memory-bomb", memory_bomb),
    ("newer-calls", newer_calls),
];

/// The machine's power port, and what switches it off.
const POWER_PORT: u16 = 0x600;
const POWER_OFF: u8 = 1;

/// The contexts that a guest can name: hypervisor, local, host, and its own.
const CONTEXTS: [u32; 4] = [0, 1, 2, 3];
const HOST: u32 = 2;
/// Where the agent dials the host.
const CONTROL_PORT: u32 = 1024;
/// Where the agent takes the host's streams.
const STREAM_PORT: u32 = 1025;
/// Streams that are tried to be taken: the first of a sandbox, were they counted.
const STREAMS_MAX: u64 = 16;
/// How long a connection may take to say something.
const PATIENCE: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

/// Switches the machine off, with whatever access to the port this process has or can get.
pub(crate) fn switch_off() {
    // Refused for those who may not; then the instruction ends this process.
    let _ = raw::ioperm(POWER_PORT);
    let _ = raw::iopl();
    raw::out(POWER_PORT, POWER_OFF);
}

/// A process that inherited access would end the machine here.
fn power_port() -> Result<()> {
    let status = Command::new("/proc/self/exe").arg("switch-off").status()?;
    ensure!(status.signal() == Some(libc::SIGSEGV), "{status}");
    Ok(())
}

/// Whether a connection gives anything: a byte to read within some time.
fn gives(connection: &mut File) -> Result<bool> {
    let mut poll = [PollFd::new(&*connection, PollFlags::IN)];
    if rustix::event::poll(&mut poll, Some(&PATIENCE))? == 0 {
        // Still open and silent is what a taken terminal would be.
        return Ok(true);
    }
    match connection.read(&mut [0; 64]) {
        Ok(count) => Ok(count > 0),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The streams of others: their port is the host's alone, and nobody else can take its place.
fn stream_port() -> Result<()> {
    for context in CONTEXTS {
        for stream in 1..=STREAMS_MAX {
            let Ok(mut connection) = raw::connect(context, STREAM_PORT) else {
                break;
            };
            // Closed already: nothing is gained either.
            let sent = connection.write_all(&stream.to_le_bytes());
            let open = sent.is_ok() && gives(&mut connection)?;
            ensure!(
                !open,
                "stream {stream} was taken by way of context {context}"
            );
        }
    }
    for context in [raw::CID_ANY, 3] {
        let taken = raw::listen(context, STREAM_PORT);
        ensure!(
            taken.is_err(),
            "listens at the port of the streams, in context {context}"
        );
    }
    Ok(())
}

/// The agent's place towards the host: only the first who dialled has it.
fn control_port() -> Result<()> {
    for _ in 0..3 {
        match raw::connect(HOST, CONTROL_PORT) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error).context("dial the host"),
            Ok(_) => bail!("the host has accepted"),
        }
    }
    Ok(())
}

/// The program of a process that is set up is the agent's: changed, no other could be made.
fn agent_program() -> Result<()> {
    let mut tried = 0;
    for process in std::fs::read_dir("/proc")?.flatten() {
        let link = process.path().join("exe");
        let Ok(program) = std::fs::read_link(&link) else {
            continue;
        };
        if program == Path::new("/init") {
            tried += 1;
            let changed = std::fs::set_permissions(&link, Permissions::from_mode(0o000));
            ensure!(changed.is_err(), "{} was changed", link.display());
            let written = File::options().write(true).open(&link);
            ensure!(written.is_err(), "{} can be written", link.display());
        }
    }
    ensure!(tried > 0, "no process of the agent's is seen");
    Ok(())
}

/// Cgroups without end, deep and many, that the agent would have to walk through.
fn cgroup_flood() -> Result<()> {
    const DEEP: usize = 64;
    const MANY: usize = 5000;
    let top = Path::new("/tmp");
    let mounted = rustix::mount::mount("none", top, "cgroup2", MountFlags::empty(), None);
    // Who may not mount has what the container has, which cannot be written.
    let top = match mounted {
        Ok(()) => top,
        Err(_) => Path::new("/sys/fs/cgroup"),
    };
    let mut path = top.to_owned();
    let mut made = 0;
    for _ in 0..DEEP {
        path.push("deep");
        made += usize::from(std::fs::create_dir(&path).is_ok());
    }
    ensure!(made <= 16, "{made} below each other");
    for number in 0..MANY {
        made += usize::from(std::fs::create_dir(top.join(number.to_string())).is_ok());
    }
    ensure!(made <= 4096, "{made} in all");
    // The limit cannot be lifted by whom it limits.
    let lifted = std::fs::write(top.join("cgroup.max.descendants"), "max");
    ensure!(lifted.is_err(), "the limit is lifted");
    ensure!(mounted.is_err() || made == 4096, "only {made} were tried");
    Ok(())
}

/// Takes every task that can be had, and keeps them.
fn thread_bomb() -> Result<()> {
    const STACK: usize = 16 << 10;
    while thread::Builder::new()
        .stack_size(STACK)
        .spawn(sleep)
        .is_ok()
    {}
    // Nothing can be printed that needs memory or threads first.
    std::io::stdout().write_all(b"full\n")?;
    sleep();
    Ok(())
}

fn sleep() {
    loop {
        thread::park();
    }
}

/// Takes all memory that can be had, until it is killed for it.
fn memory_bomb() -> Result<()> {
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1_u8; 1 << 20]);
    }
}

/// Under a filter that allows calls up to faccessat2: what no kernel has had so far, and what was there before.
fn newer_calls() -> Result<()> {
    let answer = |call| raw::call(call).err().and_then(|error| error.raw_os_error());
    for call in [libc::SYS_fchmodat2, 100_000] {
        ensure!(
            answer(call) == Some(libc::ENOSYS),
            "{call}: {:?}",
            answer(call)
        );
    }
    for call in [libc::SYS_swapoff, libc::SYS_sync] {
        ensure!(
            answer(call) == Some(libc::EPERM),
            "{call}: {:?}",
            answer(call)
        );
    }
    Ok(())
}
