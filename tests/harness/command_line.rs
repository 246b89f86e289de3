//! The command line that Podman and Docker have in common.

use std::path::Path;
use std::process::{Child, Command};

use serde_json::Value;

use crate::{Bundle, Output, Terminal, wait};

/// The image that every case has: busybox.
pub(crate) const IMAGE: &str = "busybox";

/// An engine's command line. Cases use the words that mean the same in both.
pub trait CommandLine {
    /// A call.
    fn command(&self, words: &[&str]) -> Command;

    /// Where the runtime keeps its state.
    fn runtime_root(&self) -> std::path::PathBuf;

    /// Calls it and waits.
    fn call(&self, words: &[&str]) -> Output {
        Output::of(self.command(words))
    }

    /// Runs a container without a network to its end: options, then the command.
    fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.call(&[&["run", "--network", "none"], options, &[IMAGE], command].concat())
    }

    /// Starts a container in the background under a name.
    fn start(&self, name: &str, options: &[&str], command: &[&str]) {
        let options = [&["--detach", "--name", name], options].concat();
        self.run(&options, command).assert_status(0);
    }

    /// Runs a call in the foreground of a terminal.
    fn call_in(&self, terminal: &Terminal, words: &[&str]) -> Child {
        terminal.command(&self.command(words)).spawn().unwrap()
    }

    /// What it knows of a container.
    fn inspect(&self, name: &str) -> Value {
        let output = self.call(&["container", "inspect", name]);
        output.assert_status(0);
        let mut all: Value = serde_json::from_slice(&output.stdout).unwrap();
        all[0].take()
    }

    /// Waits until a container has printed exactly this: what follows its log ends with it.
    fn await_log(&self, name: &str, text: &str) {
        wait::until(&format!("{name} prints {text:?}"), || {
            self.call(&["logs", name]).text() == text
        });
    }
}

/// Packs the files of the image.
pub(crate) fn pack_busybox(archive: &Path) {
    let bundle = Bundle::busybox();
    let packed = Command::new("tar")
        .arg("-C")
        .arg(bundle.rootfs())
        .arg("-cf")
        .arg(archive)
        .arg(".")
        .status();
    assert!(packed.unwrap().success(), "the image is packed");
}
