//! One machine from its configuration to its end.
//!
//! ```text
//!   arguments ─► configuration ─► Plan ─► Host (all files open) ─► jail ─► Machine ─► control, until the end
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use vmm_api::{ExitCode, StopReason, VmConfig};

use crate::allocator;
use crate::args::Run;
use crate::config::{CONFIG_MAX_BYTES, ConfigError, Plan};
use crate::control::{self, ControlError};
use crate::host::{self, Host, HostError};
use crate::inherited;
use crate::jail::{self, JailError};
use crate::log::Log;
use crate::machine::{Machine, MachineError};
use crate::timeline::Timeline;
use crate::violation;

/// Why a machine was not built, or did not come to an end of its own.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The C library does not know what it was told.
    #[error("limit the allocator")]
    Allocator(#[source] io::Error),
    /// A descriptor was not passed.
    #[error("{option} {number}")]
    Descriptor {
        /// The option that names it.
        option: &'static str,
        /// Its number.
        number: i32,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The configuration could not be read.
    #[error("read the configuration")]
    ReadConfig(#[source] io::Error),
    /// The configuration is not the JSON document it should be.
    #[error("parse the configuration")]
    ParseConfig(#[source] serde_json::Error),
    /// The configuration makes no sense.
    #[error("configuration")]
    Config(#[source] ConfigError),
    /// Something of the host is missing.
    #[error("prepare")]
    Host(#[source] HostError),
    /// The handler of the signal of a system call filter.
    #[error("install the signal handler")]
    Signal(#[source] io::Error),
    /// The jail.
    #[error("enter the jail")]
    Jail(#[source] JailError),
    /// The machine could not be built.
    #[error("build the machine")]
    Machine(#[source] MachineError),
    /// The machine was ended by an error.
    #[error("run the machine")]
    Control(#[source] ControlError),
}

impl RunError {
    /// The exit status that tells of it.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Descriptor { .. }
            | Self::ReadConfig(_)
            | Self::ParseConfig(_)
            | Self::Config(_) => ExitCode::Usage,
            Self::Allocator(_)
            | Self::Signal(_)
            | Self::Host(_)
            | Self::Jail(_)
            | Self::Machine(_)
            | Self::Control(_) => ExitCode::Failed,
        }
    }
}

/// The exit status that tells how a machine ended.
#[must_use]
pub fn exit_code(reason: StopReason) -> ExitCode {
    match reason {
        StopReason::PoweredOff => ExitCode::PoweredOff,
        StopReason::Reset => ExitCode::Reset,
        StopReason::Stopped => ExitCode::Stopped,
    }
}

/// Builds a machine, runs it, and returns how it ended.
pub fn run(arguments: &Run) -> Result<StopReason, RunError> {
    let timeline = Arc::new(Timeline::default());
    timeline.mark("start");
    allocator::use_one_arena().map_err(RunError::Allocator)?;
    let take = |option, number| {
        inherited::take(number).map_err(|source| RunError::Descriptor {
            option,
            number,
            source,
        })
    };
    let control = take("--control-fd", arguments.control_fd)?;
    let console = take("--console-fd", arguments.console_fd)?;
    let log = Log::new(console).map_err(|source| RunError::Descriptor {
        option: "--console-fd",
        number: arguments.console_fd,
        source,
    })?;
    let config = read_config(arguments)?;
    let plan = Plan::new(config, host::memory_mib()).map_err(RunError::Config)?;
    let host = Host::open(&plan).map_err(RunError::Host)?;
    violation::install().map_err(RunError::Signal)?;
    let root = plan.share.as_ref().map(|share| share.outside.as_path());
    jail::enter(plan.jail, root).map_err(RunError::Jail)?;
    timeline.mark("jailed");
    let machine = Machine::build(&plan, host, log, timeline).map_err(RunError::Machine)?;
    control::serve(control, machine).map_err(RunError::Control)
}

fn read_config(arguments: &Run) -> Result<VmConfig, RunError> {
    let mut text = Vec::new();
    let read = match &arguments.config {
        Some(path) => {
            File::open(path).and_then(|file| file.take(CONFIG_MAX_BYTES).read_to_end(&mut text))
        }
        None => io::stdin()
            .lock()
            .take(CONFIG_MAX_BYTES)
            .read_to_end(&mut text),
    };
    read.map_err(RunError::ReadConfig)?;
    serde_json::from_slice(&text).map_err(RunError::ParseConfig)
}
