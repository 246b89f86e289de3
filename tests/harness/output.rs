//! What a command left: its status and both outputs, with assertions that show all of it when they fail.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

/// The same command with nothing on its standard input, and pipes for both outputs. A case that needs other streams says so afterwards.
pub(crate) fn captured(mut command: Command) -> Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The end of a command.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status, or 128 + the signal that ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    pub(crate) fn new(status: ExitStatus, stdout: Vec<u8>, stderr: Vec<u8>) -> Self {
        let status = status
            .code()
            .or_else(|| status.signal().map(|signal| 128 + signal));
        Self {
            status: status.unwrap_or(-1),
            stdout,
            stderr,
        }
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// It ended with this status.
    #[track_caller]
    pub fn assert_status(&self, status: i32) -> &Self {
        assert_eq!(self.status, status, "{}", self.shown());
        self
    }

    /// It ended well and printed exactly this.
    #[track_caller]
    pub fn assert_prints(&self, text: &str) -> &Self {
        self.assert_status(0);
        assert_eq!(self.text(), text, "{}", self.shown());
        self
    }

    /// It ended well and printed this somewhere.
    #[track_caller]
    pub fn assert_prints_part(&self, part: &str) -> &Self {
        self.assert_status(0);
        assert!(
            self.text().contains(part),
            "{part:?} is not in what was printed\n{}",
            self.shown()
        );
        self
    }

    /// It failed with one line on standard error that has all of `parts`, and printed nothing else.
    #[track_caller]
    pub fn assert_refused(&self, parts: &[&str]) -> &Self {
        assert_ne!(self.status, 0, "{}", self.shown());
        let errors = self.errors();
        assert_eq!(
            errors.trim_end().lines().count(),
            1,
            "not one line\n{}",
            self.shown()
        );
        for part in parts {
            assert!(
                errors.contains(part),
                "{part:?} is not in the error\n{}",
                self.shown()
            );
        }
        assert!(self.stdout.is_empty(), "{}", self.shown());
        self
    }

    fn shown(&self) -> String {
        let tail = |bytes: &[u8]| {
            let start = bytes.len().saturating_sub(4000);
            String::from_utf8_lossy(&bytes[start..]).into_owned()
        };
        format!(
            "status {}\n--- standard output\n{}\n--- standard error\n{}",
            self.status,
            tail(&self.stdout),
            tail(&self.stderr)
        )
    }
}
