//! `husk state`: what the OCI runtime specification calls the state of a container, as JSON.

use std::process::ExitCode;

use super::{Failure, record};
use crate::config::Options;

/// Print the state of a container as JSON
#[derive(Debug, clap::Args)]
pub(super) struct StateArgs {
    /// The container
    id: String,
}

/// Prints it.
pub(super) fn run(options: &Options, args: &StateArgs) -> Result<ExitCode, Failure> {
    let state = record::state(options, &args.id)?;
    println!("{}", serde_json::to_string_pretty(&state)?);
    Ok(ExitCode::SUCCESS)
}
