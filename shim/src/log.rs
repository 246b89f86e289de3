//! The log: one line per event, appended to the file named by `--log`, in the two formats that callers of OCI runtimes parse.
//!
//! ```text
//!   text   time="2026-01-02T03:04:05.678901Z" level=error msg="cannot start" id="web"
//!   json   {"time":"2026-01-02T03:04:05.678901Z","level":"error","msg":"cannot start","id":"web"}
//! ```
//!
//! Without a file, warnings (with `--debug`, everything) go to standard error. The error that ends a command is said on standard
//! error by `main` in any case, and in the log as its last line ([`last_words`]).

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogFormat, Options};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// It cannot be made or written.
    #[error("cannot open the log {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A second call in one process.
    #[error("cannot begin the log")]
    Begun(#[source] tracing::subscriber::SetGlobalDefaultError),
}

/// Begins the log of this process. To be called once.
pub(crate) fn begin(options: &Options) -> Result<(), LogError> {
    let level = match (options.debug, &options.log) {
        (true, _) => LevelFilter::DEBUG,
        (false, Some(_)) => LevelFilter::INFO,
        (false, None) => LevelFilter::WARN,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .event_format(Line(options.log_format));
    let begun = if let Some(path) = &options.log {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| LogError::Open {
                path: path.clone(),
                source,
            })?;
        tracing::subscriber::set_global_default(builder.with_writer(file).finish())
    } else {
        tracing::subscriber::set_global_default(builder.with_writer(io::stderr).finish())
    };
    begun.map_err(LogError::Begun)
}

/// Puts the error that ends this process into the log file, if there is one.
pub(crate) fn last_words(options: &Options, message: &str) {
    if options.log.is_some() {
        tracing::error!("{message}");
    }
}

/// Writes events as lines.
struct Line(LogFormat);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warning",
            tracing::Level::INFO => "info",
            tracing::Level::DEBUG => "debug",
            tracing::Level::TRACE => "trace",
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        writeln!(out, "{}", line(self.0, &time, level, fields))
    }
}

/// One line, without its end.
fn line(format: LogFormat, time: &str, level: &str, fields: Fields) -> String {
    let Fields { message, others } = fields;
    match format {
        LogFormat::Text => {
            let mut line = format!("time={time:?} level={level} msg={}", Value::from(message));
            for (key, value) in others {
                line.push_str(&format!(" {key}={value}"));
            }
            line
        }
        LogFormat::Json => {
            let mut object = Map::new();
            object.insert("time".into(), time.into());
            object.insert("level".into(), level.into());
            object.insert("msg".into(), message.into());
            object.extend(others);
            Value::from(object).to_string()
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(String, Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.others.push((name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        Fields {
            message: "say \"it\"".into(),
            others: vec![("pid".into(), 7.into())],
        }
    }

    #[test]
    fn json_line_has_what_callers_of_runtimes_read() {
        let line = line(LogFormat::Json, "T", "error", fields());
        let object: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            object,
            serde_json::json!({"time": "T", "level": "error", "msg": "say \"it\"", "pid": 7})
        );
    }

    #[test]
    fn text_line_quotes_its_message() {
        assert_eq!(
            line(LogFormat::Text, "T", "info", fields()),
            r#"time="T" level=info msg="say \"it\"" pid=7"#
        );
    }
}
