//! What files have for others than this container too: locks and access control lists.
//!
//! Of a lock, the host has the other side. Each waits for files that the other makes beside it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FlockOperation, XattrFlags, fcntl_lock, flock};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, fcntl_getlk};

use crate::checks::{Check, as_user};
use crate::raw;

/// All of them.
pub(crate) const ALL: &[Check] = &[
    ("locks-and-the-host", locks_and_the_host),
    ("locks-taken", taken),
    ("wait-for-lock", wait_for_lock),
    ("lists", lists),
];

const POLL: Duration = Duration::from_millis(20);
/// A quarter of an hour.
const POLLS_MAX: usize = 45_000;
/// What the host has locked when it begins.
const LOCKED: &str = "../locks-and-the-host/locked";

/// Makes a file that the other side waits for.
fn say(name: &str) -> Result<()> {
    File::create(name).map(drop).context(name.to_owned())
}

#[expect(
    clippy::disallowed_methods,
    reason = "nobody tells a guest what happens on the host"
)]
fn wait(what: &str, mut seen: impl FnMut() -> bool) -> Result<()> {
    for _ in 0..POLLS_MAX {
        if seen() {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
    bail!("waited for: {what}")
}

fn await_file(name: &str) -> Result<()> {
    wait(name, || Path::new(name).exists())
}

fn open() -> Result<File> {
    let opened = File::options().read(true).write(true).open(LOCKED);
    opened.context(LOCKED)
}

/// That somebody else has both locks.
fn taken() -> Result<()> {
    let file = open()?;
    let refused = flock(&file, FlockOperation::NonBlockingLockShared);
    ensure!(refused == Err(Errno::WOULDBLOCK), "flock: {refused:?}");
    let refused = fcntl_lock(&file, FlockOperation::NonBlockingLockShared);
    ensure!(
        matches!(refused, Err(Errno::AGAIN | Errno::ACCESS)),
        "a record lock: {refused:?}"
    );
    let found = fcntl_getlk(&file, &Flock::from(FlockType::ReadLock))?;
    let found = found.context("nobody has the record lock")?;
    ensure!(found.typ == FlockType::WriteLock, "{found:?}");
    Ok(())
}

/// Waits for the record lock until it is ended.
fn wait_for_lock() -> Result<()> {
    let file = open()?;
    say("waits")?;
    Ok(fcntl_lock(&file, FlockOperation::LockExclusive)?)
}

/// Another process that waits for the record lock.
fn waiting() -> Result<Child> {
    let _ = fs::remove_file("../wait-for-lock/waits");
    let own = std::env::current_exe()?;
    let child = Command::new(own).arg("wait-for-lock").spawn()?;
    await_file("../wait-for-lock/waits")?;
    let call = format!("/proc/{}/syscall", child.id());
    let waits = format!("{} ", libc::SYS_fcntl);
    wait("a process that waits", || {
        fs::read_to_string(&call).is_ok_and(|call| call.starts_with(&waits))
    })?;
    Ok(child)
}

fn locks_and_the_host() -> Result<()> {
    await_file(LOCKED)?;
    taken().context("the host has the locks")?;
    let mut child = waiting()?;
    child.kill()?;
    let status = child.wait()?;
    ensure!(status.signal() == Some(9), "who waited: {status}");
    let file = open()?;
    raw::alarm_soon()?;
    let interrupted = fcntl_lock(&file, FlockOperation::LockExclusive);
    ensure!(interrupted == Err(Errno::INTR), "a wait: {interrupted:?}");
    let interrupted = flock(&file, FlockOperation::LockExclusive);
    ensure!(interrupted == Err(Errno::INTR), "a wait: {interrupted:?}");
    raw::no_alarm()?;
    say("waiting")?;
    flock(&file, FlockOperation::LockExclusive)?;
    fcntl_lock(&file, FlockOperation::LockExclusive)?;
    // Another process of this container finds them taken, and gets them when this one lets go.
    let own = std::env::current_exe()?;
    let found = Command::new(own).arg("locks-taken").status()?;
    ensure!(found.success(), "beside this process: {found}");
    let mut child = waiting()?;
    say("taken")?;
    await_file("let-go")?;
    // Of a process's record locks, the first close of the file ends all.
    drop(open()?);
    let status = child.wait()?;
    ensure!(status.success(), "who waited: {status}");
    say("let-go-of")?;
    await_file("end")
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// A list: owner all, user 1000 as said, user 1001 may read and enter, others nothing.
fn list(of_1000: u16) -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 7u16, u32::MAX),
        (2, of_1000, 1000),
        (2, 5, 1001),
        (4, 0, u32::MAX),
        (16, 7, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

fn lists() -> Result<()> {
    fs::set_permissions(".", PermissionsExt::from_mode(0o755))?;
    fs::write("file", "text")?;
    rustix::fs::setxattr("file", ACCESS, &list(0), XattrFlags::empty())?;
    let read = |user, path: &'static str| as_user(user, move || Ok(fs::read(path)?));
    ensure!(read(1001, "file")? == b"text", "the list lets 1001 read");
    for user in [1000, 1002] {
        ensure!(read(user, "file").is_err(), "the list keeps {user} out");
    }
    let written = as_user(1001, || Ok(fs::write("file", "")?));
    ensure!(written.is_err(), "the list lets 1001 do no more");
    // What is made in a directory inherits its default.
    fs::create_dir("directory")?;
    fs::set_permissions("directory", PermissionsExt::from_mode(0o755))?;
    rustix::fs::setxattr("directory", DEFAULT, &list(7), XattrFlags::empty())?;
    fs::create_dir("directory/below")?;
    fs::write("directory/below/file", "text")?;
    let path = "directory/below/file";
    ensure!(read(1000, path)? == b"text" && read(1001, path)? == b"text");
    ensure!(
        read(1002, path).is_err(),
        "an inherited list keeps 1002 out"
    );
    as_user(1000, move || Ok(fs::write(path, "more")?)).context("an inherited list")?;
    Ok(())
}
