//! `husk list`: all containers below the root.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;

use super::Failure;
use super::record::{self, State};
use crate::config::Options;

/// The width of a narrow column.
const COLUMN_MIN: usize = 12;

/// Blanks between columns.
const COLUMN_GAP: usize = 3;

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
    // Without a container there is no default root yet; one that was named is expected to be there.
    if !options.has_default_root() {
        let root = options.root.display();
        std::fs::metadata(&options.root).with_context(|| format!("cannot list {root}"))?;
    }
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

/// Columns as wide as their widest field and three blanks, and at least [`COLUMN_MIN`].
fn table(states: &[State]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from);
    let rows: Vec<_> = std::iter::once(header)
        .chain(states.iter().map(|state| {
            [
                state.id.clone(),
                state.pid.to_string(),
                state.status.to_string(),
                state.bundle.display().to_string(),
                state.created.clone(),
                state.owner.clone(),
            ]
        }))
        .collect();
    let width = |column: usize| {
        let fields = rows.iter().map(|row| row[column].chars().count());
        (fields.max().unwrap_or(0) + COLUMN_GAP).max(COLUMN_MIN)
    };
    let mut text = String::new();
    for row in &rows {
        for (column, field) in row.iter().enumerate() {
            let width = width(column);
            // Writing to a String cannot fail.
            let _ = write!(text, "{field:<width$}");
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
        let header = "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n";
        assert_eq!(table(&[]), header);
    }
}
