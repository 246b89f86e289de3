//! `husk list`: all containers below the root.

use std::process::ExitCode;

use clap::ValueEnum;

use super::Failure;
use super::record::{self, State};
use crate::config::Options;

/// List the containers
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// How to print them
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line per container
    #[default]
    Table,
    /// An array of states
    Json,
}

/// Prints them.
pub(super) fn run(options: &Options, args: &ListArgs) -> Result<ExitCode, Failure> {
    let states = record::all(options)?;
    if args.quiet {
        for state in &states {
            println!("{}", state.id);
        }
    } else if args.format == Format::Json {
        println!("{}", serde_json::to_string(&states)?);
    } else {
        print!("{}", table(&states));
    }
    Ok(ExitCode::SUCCESS)
}

/// Columns as wide as their widest field.
fn table(states: &[State]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED"].map(String::from);
    let rows: Vec<_> = std::iter::once(header)
        .chain(states.iter().map(|state| {
            [
                state.id.clone(),
                state.pid.to_string(),
                state.status.to_string(),
                state.bundle.display().to_string(),
                state.created.clone(),
            ]
        }))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3), width(4)];
    let mut text = String::new();
    for row in &rows {
        for (field, width) in row.iter().zip(widths) {
            text.push_str(&format!("{field:<width$}   "));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_table_is_its_header() {
        assert_eq!(table(&[]), "ID   PID   STATUS   BUNDLE   CREATED\n");
    }
}
