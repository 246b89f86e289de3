//! Where the guest's log goes: a pipe or file of the supervisor's, written without ever waiting.
//!
//! What the reader has no room for is dropped. The guest writes as fast as it likes, and neither the VMM nor the pipe grows.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// A line longer than this is written in parts.
const LINE_MAX_BYTES: usize = 256;

/// The sink; clones write to the same file.
#[derive(Clone, Debug)]
pub struct Log {
    file: Arc<File>,
}

impl Log {
    /// Takes a file and makes it non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            file: Arc::new(fd.into()),
        })
    }
}

impl Write for Log {
    /// Always takes all of it. A reader that is slow, or gone, costs bytes of the log and nothing else.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _dropped = (&*self.file).write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gathers the bytes of a UART into lines. Dropped, it writes what is left.
#[derive(Debug)]
pub struct Lines<W: Write> {
    to: W,
    line: Vec<u8>,
}

impl<W: Write> Lines<W> {
    /// Lines to `to`.
    pub fn new(to: W) -> Self {
        Self {
            to,
            line: Vec::with_capacity(LINE_MAX_BYTES),
        }
    }

    /// Adds a byte; a full line is written out.
    pub fn push(&mut self, byte: u8) -> io::Result<()> {
        self.line.push(byte);
        if byte != b'\n' && self.line.len() < LINE_MAX_BYTES {
            return Ok(());
        }
        self.flush()
    }

    /// Writes what there is of a line.
    pub fn flush(&mut self) -> io::Result<()> {
        let written = self.to.write_all(&self.line);
        self.line.clear();
        written
    }
}

impl<W: Write> Drop for Lines<W> {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _written = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn lines_are_written_whole_and_long_ones_in_parts() {
        let mut written = Vec::new();
        let mut lines = Lines::new(&mut written);
        for byte in *b"ab" {
            lines.push(byte).unwrap();
        }
        assert!(lines.to.is_empty());
        lines.push(b'\n').unwrap();
        assert_eq!(lines.to.as_slice(), b"ab\n");
        for _ in 0..=LINE_MAX_BYTES {
            lines.push(b'x').unwrap();
        }
        assert_eq!(lines.to.len(), 3 + LINE_MAX_BYTES);
        drop(lines);
        assert_eq!(written.len(), 4 + LINE_MAX_BYTES);
    }

    #[test]
    fn full_pipe_drops_and_does_not_block() {
        let (reader, writer) = io::pipe().unwrap();
        let mut log = Log::new(writer.into()).unwrap();
        for _ in 0..64 {
            log.write_all(&[b'x'; 4096]).unwrap();
        }
        drop(log);
        let mut kept = Vec::new();
        File::from(OwnedFd::from(reader))
            .read_to_end(&mut kept)
            .unwrap();
        assert!(!kept.is_empty() && kept.len() < 64 * 4096);
    }
}
