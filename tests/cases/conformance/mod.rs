//! The OCI runtime specification's rules, where no other case proves them already. The table that names a case for each rule is in
//! this package's README.md.

use harness::{Bundle, Output, Runtime};
use serde_json::{Value, json};

mod annotations;
mod hooks;
mod lifecycle;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod root;

/// Runs a bundle to its end.
fn run(bundle: &Bundle) -> Output {
    Runtime::from_environment().run(bundle)
}

/// Runs what must be refused: an error of one line, and nothing is left.
#[track_caller]
fn refused(bundle: &Bundle, what: &str) {
    let output = run(bundle);
    assert_ne!(output.status, 0, "{what} is accepted");
    if Runtime::is_husk() {
        output.assert_refused(&[]);
    }
}

/// A tmpfs with these options.
fn tmpfs(destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}
