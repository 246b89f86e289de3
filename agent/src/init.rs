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
use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};
use rustix::process::{chdir, chroot};

use crate::log::{debug, enable_debug, line_of, warn};
use crate::power::PowerError;
use crate::{cgroup, cmdline, network, power, storage};

/// Which step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error(transparent)]
    Power(#[from] PowerError),
    #[error("cannot {doing}")]
    Step {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
}

trait Step<T> {
    fn step(self, doing: &'static str) -> Result<T, InitError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, doing: &'static str) -> Result<T, InitError> {
        self.map_err(|error| InitError::Step {
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

/// What the kernel leaves to the administrator of a machine to switch on, as Debian does.
const SYSCTLS: [(&str, &str); 5] = [
    // In a directory for all, nobody is led to a file of another user's by a link, a FIFO or a file made before.
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "1"),
    ("fs/protected_regular", "2"),
    // Files of the kernel's show its addresses to nobody without CAP_SYSLOG.
    ("kernel/kptr_restrict", "1"),
];

/// Sets the machine up, up to what the host has to say.
pub(crate) fn set_up() -> Result<(), InitError> {
    power::write(POWER_MARK_INIT)?;
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
    for (key, value) in SYSCTLS {
        fs::write(Path::new("/proc/sys").join(key), value).step(key)?;
    }
    freeze_root().step("make the root read-only")?;
    debug!("set up");
    Ok(())
}

/// The agent's executable is in the root, and `/proc/PID/exe` leads there from any process that has not executed its program yet. So it is the file
/// system that becomes read-only, and not one of its mounts.
fn freeze_root() -> Result<(), Errno> {
    mount_remount("/", MountFlags::RDONLY, "")
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
        warn!("{}", line_of(&error));
    }
    // Where the port is not answered the kernel may know another way.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
}
