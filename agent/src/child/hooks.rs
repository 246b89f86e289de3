//! The `startContainer` hooks: run one after the other by the process itself, when its start was asked for and before its program.
//!
//! By then it is the user that the program will be, in the container's namespaces, with the container's capabilities and filter. A
//! hook gets the container's state on its standard input; what it says is kept, up to a bound, for the message of its failure.
//!
//! Fails with the first hook that cannot be run, does not end in time, or ends with another status than 0.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::plan::{Hook, StartHooks};
use crate::report::{Failure, FailureKind};
use crate::signal;

/// As much of a hook's own words as is quoted.
const SAID_MAX: u64 = 512;

/// Hooks with the files that they are given, opened while opening files cannot be forbidden yet.
#[derive(Debug)]
pub(super) struct Prepared<'h> {
    hooks: &'h [Hook],
    state: File,
    said: File,
}

/// Gets ready to run hooks.
pub(super) fn prepare(hooks: Option<&StartHooks>) -> Result<Option<Prepared<'_>>, Failure> {
    let Some(hooks) = hooks else {
        return Ok(None);
    };
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    files(&hooks.state(pid))
        .map(|(state, said)| {
            Some(Prepared {
                hooks: &hooks.hooks,
                state,
                said,
            })
        })
        .map_err(|error| failure(format!("cannot prepare the startContainer hooks: {error}")))
}

fn files(state: &str) -> io::Result<(File, File)> {
    let file = |name| memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
    let mut given = file("state")?;
    given.write_all(state.as_bytes())?;
    Ok((given, file("output")?))
}

impl Prepared<'_> {
    /// Runs them all. `env` is that of the program to come.
    pub(super) fn run(mut self, env: &[CString]) -> Result<(), Failure> {
        for (index, hook) in self.hooks.iter().enumerate() {
            let ended = self.run_one(hook, env);
            let why = match ended {
                Ok(None) => continue,
                Ok(Some(why)) => format!("{why}{}", self.said()),
                Err(error) => super::io_error_text(&error),
            };
            return Err(failure(format!(
                "error running startContainer hook #{index}: {}: {why}",
                hook.path.display()
            )));
        }
        Ok(())
    }

    /// Why it failed; none where it did not.
    fn run_one(&mut self, hook: &Hook, env: &[CString]) -> io::Result<Option<String>> {
        self.state.rewind()?;
        self.said.set_len(0)?;
        self.said.rewind()?;
        let (first, rest) = hook.args.split_first().unzip();
        let vars: Vec<(&OsStr, &OsStr)> = match &hook.env {
            Some(own) => own
                .iter()
                .filter_map(|entry| pair(entry.as_bytes()))
                .collect(),
            None => env
                .iter()
                .filter_map(|entry| pair(entry.as_bytes()))
                .collect(),
        };
        let mut command = Command::new(&hook.path);
        let mut child = signal::default_all_in(&mut command)
            .arg0(first.map_or(hook.path.as_os_str(), |first| first.as_ref()))
            .args(rest.unwrap_or_default())
            .env_clear()
            .envs(vars)
            .stdin(self.state.try_clone()?)
            .stdout(self.said.try_clone()?)
            .stderr(Stdio::from(self.said.try_clone()?))
            .spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
        let in_time = ends(&pidfd, hook.timeout_s)?;
        if !in_time {
            child.kill()?;
        }
        let status = child.wait()?;
        Ok(match (in_time, status.success()) {
            (false, _) => Some("did not end in time".to_owned()),
            (true, false) => Some(status.to_string()),
            (true, true) => None,
        })
    }

    /// What the last hook has said, in one line.
    fn said(&mut self) -> String {
        let mut text = Vec::new();
        let read = self.said.rewind();
        let read = read.and_then(|()| (&self.said).take(SAID_MAX).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if read.is_err() || line.is_empty() {
            String::new()
        } else {
            format!(": {line}")
        }
    }
}

/// A variable's name and value.
fn pair(entry: &[u8]) -> Option<(&OsStr, &OsStr)> {
    let middle = entry.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (&entry[..middle], &entry[middle + 1..]);
    Some((OsStr::from_bytes(name), OsStr::from_bytes(value)))
}

/// Whether the process ends in that time.
fn ends(pidfd: &OwnedFd, timeout_s: Option<u32>) -> Result<bool, Errno> {
    let timeout = timeout_s.map(|seconds| Timespec {
        tv_sec: seconds.into(),
        tv_nsec: 0,
    });
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    loop {
        match poll(&mut polled, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            ended => return Ok(ended? > 0),
        }
    }
}

fn failure(message: String) -> Failure {
    Failure {
        kind: FailureKind::SetUp,
        message,
    }
}
