//! From the kernel's hand-over to a machine that containers can be made in.
//!
//! ```text
//! power port: begun ─► a root that can be pivoted ─► proc, sys, dev, run, tmp ─► cgroups ─► loopback ─► share ─► serve
//! ```
//!
//! Each step is a system call or a few; none waits for anything. A machine that cannot be set up is switched off, with a line on the
//! console that says why.

use std::fs;
use std::io;
use std::path::Path;

use agent_api::{POWER_MARK_INIT, POWER_OFF};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{chdir, chroot};

use crate::log::{debug, enable_debug, warn};
use crate::{cgroup, cmdline, network, power, storage};

/// Which step failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}")]
pub(crate) struct InitError {
    doing: &'static str,
    #[source]
    source: io::Error,
}

trait Step<T> {
    fn step(self, doing: &'static str) -> Result<T, InitError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, doing: &'static str) -> Result<T, InitError> {
        self.map_err(|error| InitError {
            doing,
            source: error.into(),
        })
    }
}

const PLAIN: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Where, what, with which flags and options. Directories are made.
const MOUNTS: [(&str, &str, MountFlags, &std::ffi::CStr); 9] = [
    ("/proc", "proc", PLAIN, c""),
    ("/sys", "sysfs", PLAIN, c""),
    (
        "/dev",
        "devtmpfs",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        c"mode=0755",
    ),
    (
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        c"ptmxmode=0666,mode=0620,gid=5",
    ),
    ("/dev/shm", "tmpfs", PLAIN, c"mode=1777"),
    ("/dev/mqueue", "mqueue", PLAIN, c""),
    (
        cgroup::MOUNT,
        "cgroup2",
        PLAIN,
        c"nsdelegate,memory_recursiveprot",
    ),
    ("/run", "tmpfs", PLAIN, c"mode=0755"),
    ("/tmp", "tmpfs", PLAIN, c"mode=1777"),
];

/// The first words of PID 1.
pub(crate) fn begin() {
    // Outside a husk machine there is no such port, and the mark is missed by nobody.
    let _ = power::write(POWER_MARK_INIT);
}

/// Sets the machine up, up to what the host has to say.
pub(crate) fn set_up() -> Result<(), InitError> {
    stack_root().step("make a root that can be pivoted")?;
    for (place, kind, flags, options) in MOUNTS {
        mount_at(place, kind, flags, options)?;
    }
    console().step("open the console")?;
    if cmdline::parse(&fs::read_to_string("/proc/cmdline").step("read the command line")?).debug {
        enable_debug();
    }
    cgroup::delegate(Path::new(cgroup::MOUNT)).step("enable the cgroup controllers")?;
    network::loopback_up().step("bring up the loopback interface")?;
    storage::mount_share().step("mount the shared directory")?;
    debug!("set up");
    Ok(())
}

/// The kernel's first file system cannot be pivoted away from; a bind mount of it, moved over it, can.
fn stack_root() -> Result<(), Errno> {
    const STACKED: &str = "/run";
    match rustix::fs::mkdir(STACKED, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    mount_bind("/", STACKED)?;
    chdir(STACKED)?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")
}

fn mount_at(
    place: &'static str,
    kind: &str,
    flags: MountFlags,
    options: &std::ffi::CStr,
) -> Result<(), InitError> {
    match fs::create_dir_all(place)
        .and_then(|()| Ok(mount(kind, place, kind, flags, Some(options))?))
    {
        // A kernel without POSIX message queues serves all containers that do not ask for them.
        Err(error) if kind == "mqueue" => {
            warn!("no message queues: {error}");
            Ok(())
        }
        mounted => mounted.step(place),
    }
}

/// Whatever the kernel has opened for PID 1, its stdio is the console from now on.
fn console() -> Result<(), Errno> {
    let console = open(
        "/dev/console",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .or_else(|_| open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()))?;
    rustix::stdio::dup2_stdin(&console)?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)
}

/// Writes everything back and switches the machine off.
pub(crate) fn power_off() {
    rustix::fs::sync();
    if let Err(error) = storage::unmount_share() {
        warn!("cannot unmount the shared directory: {error}");
    }
    if let Err(error) = power::write(POWER_OFF) {
        warn!("no power port: {error}");
    }
    // Where the port is not answered the kernel may know another way.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
}
