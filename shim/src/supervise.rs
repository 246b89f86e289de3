//! The supervisor's process: start one, connect to one, be one.

use std::path::Path;

use containerd_shim_protos::shim_async::TaskClient;

use crate::config::Options;

/// What `husk serve` is told beside the [`Options`].
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// The sandbox's id
    pub(crate) id: String,
    /// Stop everything when this process is gone
    #[arg(long, value_name = "PID")]
    pub(crate) owner: Option<u32>,
}

/// What a new supervisor is started with.
#[derive(Debug)]
pub(crate) struct StartArgs<'a> {
    /// Passed on to it.
    pub(crate) options: &'a Options,
    /// The sandbox's id.
    pub(crate) id: &'a str,
    /// The process whose end is the sandbox's.
    pub(crate) owner: Option<u32>,
}

/// A connected supervisor.
pub(crate) struct Supervisor {
    /// containerd's Task API.
    pub(crate) tasks: TaskClient,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").finish_non_exhaustive()
    }
}

/// Runs a supervisor in this process until it is shut down.
pub(crate) fn serve(_options: &Options, _args: &ServeArgs) -> anyhow::Result<()> {
    anyhow::bail!("there is no supervisor")
}

/// Starts a supervisor in the background and connects to it.
pub(crate) async fn start(_args: &StartArgs<'_>) -> anyhow::Result<Supervisor> {
    anyhow::bail!("there is no supervisor")
}

/// Connects to the supervisor of a sandbox.
pub(crate) async fn connect(_root: &Path, _id: &str) -> anyhow::Result<Supervisor> {
    anyhow::bail!("there is no supervisor")
}
