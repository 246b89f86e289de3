//! The little program that becomes a container's process: synchronous, single-threaded, entered by re-exec, ended by `execve`.
//!
//! ```text
//! agent ── re-exec ─► stage 1 ───────────── clone ─► stage 2
//!                     plan, limits, rlimits            waits for its id maps
//!                     joins namespaces                 cgroup namespace, names, mounts, pivot_root, terminal
//!                     writes the id maps ── go ──►     user, capabilities; finds its program
//!                     ends                             Ready ── waits for GO ──► seccomp, startContainer hooks, execve
//! ```
//!
//! Stage 2 is cloned as a child of the agent, not of stage 1, directly into the container's cgroup and its new namespaces. Stage 1 is
//! what may still act on the outside: it writes the id maps and tells the agent the process id.
//!
//! Every way to fail ends in one [`Report::Failed`] and the end of the stage that failed; the agent removes what is left.

#[expect(unsafe_code, reason = "clone3 and close_range have no safe wrappers")]
mod clone;
pub(crate) mod console;
mod copy_up;
mod devices;
mod hooks;
#[expect(
    unsafe_code,
    reason = "descriptors are named by number on the command line"
)]
mod inherited;
#[expect(unsafe_code, reason = "keyctl has no safe wrapper")]
mod keyring;
mod mask;
#[expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]
mod mounts;
mod program;
mod root;
#[expect(
    unsafe_code,
    reason = "sched_setattr, ioprio_set and personality have no safe wrappers"
)]
mod schedule;
#[expect(unsafe_code, reason = "seccomp has no safe wrapper")]
mod seccomp;
mod stages;
mod user;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::io::Errno;

pub(crate) use self::inherited::Inherited;
use crate::plan::Plan;
use crate::report::{self, Failure, FailureKind, Report};

/// What was being done when a system call failed: one line for the user.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {}", errno_text(*errno))]
struct StepError {
    doing: String,
    errno: Errno,
}

impl From<StepError> for Failure {
    fn from(error: StepError) -> Self {
        Self {
            kind: FailureKind::SetUp,
            message: error.to_string(),
        }
    }
}

/// The message of an error number, as C programs print it.
fn errno_text(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string().to_lowercase();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

fn io_error_text(error: &std::io::Error) -> String {
    Errno::from_io_error(error).map_or_else(|| error.to_string(), errno_text)
}

/// Says what was being done.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<StepErrno>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|error| StepError {
            doing: what(),
            errno: error.into().0,
        })
    }
}

/// The error number in whichever error a system call's wrapper gives.
struct StepErrno(Errno);

impl From<Errno> for StepErrno {
    fn from(errno: Errno) -> Self {
        Self(errno)
    }
}

impl From<nix::errno::Errno> for StepErrno {
    fn from(errno: nix::errno::Errno) -> Self {
        #[expect(clippy::as_conversions, reason = "the enum's own number")]
        Self(Errno::from_raw_os_error(errno as i32))
    }
}

impl From<std::io::Error> for StepErrno {
    fn from(error: std::io::Error) -> Self {
        Self(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// Runs stage 1, and in the clone stage 2. Returns only where there is no program to become.
pub(crate) fn run(inherited: Inherited) -> ExitCode {
    let Inherited {
        plan,
        status,
        target,
    } = inherited;
    match prepare(plan).and_then(|plan| stages::enter(&plan, status.as_fd(), target)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(status.as_fd(), failure),
    }
}

fn prepare(plan: OwnedFd) -> Result<Plan, Failure> {
    clone::close_on_exec_from(3).doing(|| "cannot keep descriptors to itself".to_owned())?;
    // Processes of the container that is being joined must not be able to look into this one.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .doing(|| "cannot become non-dumpable".to_owned())?;
    let mut json = Vec::new();
    File::from(plan)
        .read_to_end(&mut json)
        .doing(|| "cannot read the plan".to_owned())?;
    serde_json::from_slice(&json).map_err(|error| Failure {
        kind: FailureKind::SetUp,
        message: format!("cannot read the plan: {error}"),
    })
}

/// Tells the agent; the exit status is the one a shell would give.
fn fail(status: BorrowedFd<'_>, failure: Failure) -> ExitCode {
    let code = ExitCode::from(failure.kind.status());
    // The agent being gone, there is nobody left to tell.
    let _ = report::send(status, &Report::Failed(failure), None);
    code
}

fn quoted(path: &Path) -> String {
    path.display().to_string()
}
