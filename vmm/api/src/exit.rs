//! Exit status of the VMM process.

/// What the status of an exited `husk-vmm` means. A death by signal is a crash, or the host's OOM killer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// PID 1 powered the machine off.
    PoweredOff = 0,
    /// The machine could not be built or a host error ended it; standard error has one line.
    Failed = 1,
    /// The command line or the configuration is wrong; standard error has one line.
    Usage = 2,
    /// The guest reset itself or panicked.
    Reset = 3,
    /// Stopped by order, or because the supervisor went away.
    Stopped = 4,
}

impl ExitCode {
    /// The code that a wait status carries, if it is one of ours.
    #[must_use]
    pub fn from_status(status: i32) -> Option<Self> {
        Some(match status {
            0 => Self::PoweredOff,
            1 => Self::Failed,
            2 => Self::Usage,
            3 => Self::Reset,
            4 => Self::Stopped,
            _ => return None,
        })
    }
}

impl From<ExitCode> for u8 {
    fn from(code: ExitCode) -> Self {
        code as Self
    }
}
