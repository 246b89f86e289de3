//! What a VMM says: the guest's console as a ring of its last bytes, and the first bytes of standard error.
//!
//! Both are bounded here, since a guest can write to its console for ever.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::guest::text;

/// How much of the console is kept: a whole boot's log and what came last.
const CONSOLE_MAX_BYTES: usize = 64 * 1024;

/// How much of standard error is kept: it is one line.
const STDERR_MAX_BYTES: usize = 4 * 1024;

/// How much of the console goes to a debugging log too: more than any boot says, less than fills a disk.
const LOGGED_MAX_BYTES: usize = 1024 * 1024;

/// Of one line that is shown.
const LINE_MAX_BYTES: usize = 4 * 1024;

/// Bytes taken from a pipe at once.
const CHUNK_BYTES: usize = 4 * 1024;

/// The guest's console; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Console(Arc<Mutex<VecDeque<u8>>>);

impl Console {
    /// Keeps what comes through `pipe` until its end.
    pub(crate) fn fill_from(&self, pipe: OwnedFd) -> io::Result<JoinHandle<()>> {
        let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
        let console = self.clone();
        Ok(tokio::spawn(async move {
            let mut chunk = vec![0; CHUNK_BYTES];
            let mut logged = 0;
            while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
                console.push(&chunk[..length]);
                if logged < LOGGED_MAX_BYTES {
                    logged += length;
                    log(&chunk[..length]);
                }
            }
        }))
    }

    /// The last `count` lines, as far as they can be shown.
    pub(crate) fn last_lines(&self, count: usize) -> String {
        let lines = self.lines();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// The last line that has `mark` in it, with some before and after, `count` in all. None when there is no such line.
    pub(crate) fn lines_around(&self, mark: &str, count: usize) -> Option<String> {
        let lines = self.lines();
        let at = lines.iter().rposition(|line| line.contains(mark))?;
        let first = at.saturating_sub(count / 2);
        let last = lines.len().min(first + count);
        Some(lines[first..last].join("\n"))
    }

    fn lines(&self) -> Vec<String> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = ring.iter().copied().collect();
        drop(ring);
        String::from_utf8_lossy(&bytes)
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(shown)
            .collect()
    }

    fn push(&self, bytes: &[u8]) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.extend(bytes);
        let excess = ring.len().saturating_sub(CONSOLE_MAX_BYTES);
        ring.drain(..excess);
    }
}

/// A line as far as it can be shown: a console ends its lines in a carriage return, too.
fn shown(line: &str) -> String {
    text::clean(line.trim_end_matches('\r'), LINE_MAX_BYTES)
}

/// Passes a chunk on to the log, line by line.
fn log(chunk: &[u8]) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        for line in String::from_utf8_lossy(chunk).lines() {
            tracing::debug!("console: {}", shown(line.trim_end()));
        }
    }
}

/// The last whole line among the first bytes of `pipe`, once it has ended.
pub(crate) fn last_line_of(pipe: OwnedFd) -> io::Result<JoinHandle<String>> {
    let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
    Ok(tokio::spawn(async move {
        let mut kept = Vec::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
            let room = STDERR_MAX_BYTES - kept.len();
            kept.extend_from_slice(&chunk[..length.min(room)]);
        }
        let said = String::from_utf8_lossy(&kept);
        shown(said.lines().last().unwrap_or_default().trim())
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn console_keeps_the_last_bytes_only() {
        let console = Console::default();
        let (reader, writer) = io::pipe().unwrap();
        let filled = console.fill_from(reader.into()).unwrap();
        let writing = std::thread::spawn(move || {
            let mut writer = writer;
            writeln!(writer, "early").unwrap();
            for number in 0..20_000 {
                writeln!(writer, "line {number}").unwrap();
            }
        });
        filled.await.unwrap();
        writing.join().unwrap();
        assert_eq!(console.last_lines(2), "line 19998\nline 19999");
        assert_eq!(console.lines_around("early", 1), None);
        assert!(console.0.lock().unwrap().len() <= CONSOLE_MAX_BYTES);
    }

    #[test]
    fn control_characters_do_not_leave_the_console() {
        let console = Console::default();
        console.push(b"\x1b[31mred\x07\r\n\n");
        assert_eq!(console.last_lines(5), "?[31mred?");
    }

    #[test]
    fn a_marked_line_is_shown_with_its_neighbours() {
        let console = Console::default();
        console.push(b"a\nb\nc panic\nd\ne\nf\n");
        let around = |count| console.lines_around("panic", count);
        assert_eq!(around(4).as_deref(), Some("a\nb\nc panic\nd"));
        assert_eq!(around(100).as_deref(), Some("a\nb\nc panic\nd\ne\nf"));
        assert_eq!(console.lines_around("oops", 4), None);
    }

    #[tokio::test]
    async fn a_flood_on_standard_error_is_cut() {
        let (reader, mut writer) = io::pipe().unwrap();
        let line = last_line_of(reader.into()).unwrap();
        let writing = std::thread::spawn(move || {
            for _ in 0..100 {
                writer.write_all(&[b'x'; 1000]).unwrap();
            }
        });
        assert_eq!(line.await.unwrap().len(), STDERR_MAX_BYTES);
        writing.join().unwrap();
    }
}
