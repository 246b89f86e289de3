//! The supervisor's process: start one, connect to one, be one.
//!
//! ```text
//!   husk run ── starts ──► husk serve: claims the id, own session and mount namespace, listens ─── "serving" ──► connected
//!                                      │
//!                                      └─ ends on: Shutdown, SIGTERM, its owner's end, no container for a while,
//!                                                  or with its container
//! ```
//!
//! The new process says on its standard output, a pipe, either `serving` or why it does not; then it lets go of the
//! pipe. It outlives its starter, unless that one is its owner.
//!
//! An engine that runs the command line waits for the process whose pid it was told, which becomes its child when the command has
//! ended. That process is the supervisor: it ends with its container ([`ServeArgs::end_with_container`]), after its output, with
//! its exit status. What there is to see of that process is the container's, see [`face`].

mod client;
mod face;
mod serve;

pub(crate) use client::{StartError, Supervisor, connect, start};
pub(crate) use face::{Face, View, while_shown};
pub(crate) use serve::serve;

use crate::config::Options;
use crate::state::ProcessRef;

/// The word for a supervisor that is ready.
const SERVING: &str = "serving";

/// What `husk serve` is told beside the [`Options`].
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// The sandbox's id
    pub(crate) id: String,
    /// Stop everything when this process is gone
    #[arg(long, value_name = "PID:START_TIME")]
    pub(crate) owner: Option<ProcessRef>,
    /// Report this process's pid as the containers', instead of the VMM's
    #[arg(long)]
    pub(crate) report_own_pid: bool,
    /// End when the container with the sandbox's id has ended, with its exit status, and leave its record
    #[arg(long)]
    pub(crate) end_with_container: bool,
}

/// Whether a supervisor logs to the standard error of who has started it: in the foreground, for who debugs and names no file.
fn logs_to_caller(options: &Options, owner: Option<ProcessRef>) -> bool {
    options.debug && options.log.is_none() && owner.is_some()
}

/// What a new supervisor is started with.
#[derive(Debug)]
pub(crate) struct StartArgs<'a> {
    /// Passed on to it.
    pub(crate) options: &'a Options,
    /// The sandbox's id.
    pub(crate) id: &'a str,
    /// The process whose end is the sandbox's.
    pub(crate) owner: Option<ProcessRef>,
    /// Whether it ends when its container has ended, and leaves the record.
    pub(crate) end_with_container: bool,
}
