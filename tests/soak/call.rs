//! A call of the runtime, whose end may not be waited for in vain.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use harness::wait;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

use crate::evidence;

/// After this a call is looked into: far more than any takes on a software-emulated host.
const LONG: Duration = Duration::from_secs(150);

/// And after this much more the soak has failed: more than the longest deadline of husk's own.
const TOO_LONG: Duration = Duration::from_secs(300);

/// A call under way. Its outputs are files: a container in the background keeps them.
#[derive(Debug)]
pub(crate) struct Call {
    child: Child,
    output: NamedTempFile,
    errors: NamedTempFile,
    words: String,
    begin: Instant,
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit status, or 128 + the signal that ended it.
    pub(crate) status: i32,
    pub(crate) output: String,
    pub(crate) errors: String,
    /// How long it took.
    pub(crate) took: Duration,
}

impl Call {
    pub(crate) fn start(mut command: Command) -> Self {
        let (output, errors) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
        command.stdout(File::create(output.path()).unwrap());
        command.stderr(File::create(errors.path()).unwrap());
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        let words = words.join(" ");
        Self {
            child: command.spawn().unwrap(),
            output,
            errors,
            words,
            begin: Instant::now(),
        }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended.
        let _ = kill_process(self.pid(), signal);
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Whether it ends within that time.
    pub(crate) fn ends_within(&self, time: Duration) -> bool {
        wait::ends_within(self.pid(), time)
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        if !self.ends_within(LONG) {
            println!("no end of it in {LONG:?}: {}", self.words);
            evidence::print();
            let ended = self.ends_within(TOO_LONG);
            assert!(
                ended,
                "no end of it in {LONG:?} and {TOO_LONG:?}: {}",
                self.words
            );
        }
        let took = self.begin.elapsed();
        let status = self.child.wait().unwrap();
        let read = |file: &NamedTempFile| {
            String::from_utf8_lossy(&fs::read(file.path()).unwrap()).into_owned()
        };
        Ended {
            status: status
                .code()
                .or_else(|| status.signal().map(|signal| 128 + signal))
                .unwrap(),
            output: read(&self.output),
            errors: read(&self.errors),
            took,
        }
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn assert_done(&self) -> &Self {
        assert_eq!(self.status, 0, "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn assert_nothing_said(&self) {
        self.assert_done();
        assert_eq!(self.output, "", "{self:?}");
    }
}
