//! Verbs of other runtimes that mean nothing for a VM: refused in one line, whatever their arguments.

use std::process::ExitCode;

use anyhow::anyhow;

use super::Failure;

/// Not there for a container in a VM
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(super) struct AnyArgs {
    /// Whatever is said
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    words: Vec<String>,
}

/// Says so.
pub(super) fn checkpoint(verb: &str, _: &AnyArgs) -> Result<ExitCode, Failure> {
    Err(anyhow!("{verb}: a container in a VM has no checkpoint here").into())
}
