//! What a hook says on its standard output and error, kept for the message of its failure.
//!
//! The beginning is kept and the rest is dropped, so that a hook is not kept waiting. What the hook has started may have its streams open after it:
//! nobody waits for that.

use std::fmt::Write as _;
use std::os::fd::AsFd;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStderr, ChildStdout};

use crate::guest::text;

/// Of each stream, as much as fits into a line of a log that people read.
pub(super) const SAID_MAX_BYTES: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Said {
    stdout: Stream<ChildStdout>,
    stderr: Stream<ChildStderr>,
}

#[derive(Debug)]
struct Stream<P> {
    /// None at its end.
    pipe: Option<P>,
    kept: Vec<u8>,
}

impl Said {
    /// By this hook, whose streams are pipes.
    pub(super) fn of(child: &mut Child) -> Self {
        Self {
            stdout: Stream::of(child.stdout.take()),
            stderr: Stream::of(child.stderr.take()),
        }
    }

    /// Waits until something more is said, and keeps it. Never ready after the end.
    pub(super) async fn hear(&mut self) {
        tokio::select! {
            () = self.stdout.hear() => {}
            () = self.stderr.hear() => {}
        }
    }

    /// All that was said until now, to be appended to a message; on one line, empty for nothing.
    pub(super) fn text(&mut self) -> String {
        let mut text = String::new();
        for (name, said) in [
            ("stdout", self.stdout.text()),
            ("stderr", self.stderr.text()),
        ] {
            if !said.is_empty() {
                // Writing to a String cannot fail.
                let _ = write!(text, ", {name}: {said}");
            }
        }
        text
    }
}

impl<P: AsyncRead + AsFd + Unpin> Stream<P> {
    fn of(pipe: Option<P>) -> Self {
        Self {
            pipe,
            kept: Vec::new(),
        }
    }

    async fn hear(&mut self) {
        let Some(pipe) = &mut self.pipe else {
            return std::future::pending().await;
        };
        let mut chunk = [0; 1024];
        match pipe.read(&mut chunk).await {
            Ok(length @ 1..) => self.keep(&chunk[..length]),
            Ok(0) | Err(_) => self.pipe = None,
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = SAID_MAX_BYTES.saturating_sub(self.kept.len());
        self.kept.extend(bytes.iter().take(room));
    }

    fn text(&mut self) -> String {
        // What is in the pipe, which does not block.
        while let Some(pipe) = &self.pipe
            && self.kept.len() < SAID_MAX_BYTES
        {
            let mut chunk = [0; 1024];
            match rustix::io::read(pipe, &mut chunk) {
                Ok(length @ 1..) => self.keep(&chunk[..length]),
                Ok(0) | Err(_) => break,
            }
        }
        let said = String::from_utf8_lossy(&self.kept);
        let line: Vec<&str> = said.split_whitespace().collect();
        text::clean(&line.join(" "), SAID_MAX_BYTES)
    }
}
