//! All fuzz targets in one executable: libFuzzer's, with its options. `HUSK_FUZZ_TARGET` names the
//! target, `hack/fuzz` is how it is run.
//!
//! A target gets bytes, acts on the code under test as they say, and panics when a promise is
//! broken. It keeps nothing from one input to the next, so that an input does the same whenever it
//! is run.

#![no_main]

/// Bytes as decisions.
mod input;
/// What is fuzzed.
mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

use targets::Target;

static TARGET: OnceLock<Target> = OnceLock::new();

/// The target that the environment names. There is nobody to return an error to: libFuzzer owns
/// `main`.
fn chosen() -> Target {
    let name = std::env::var("HUSK_FUZZ_TARGET").unwrap_or_default();
    let Some((_, target)) = targets::ALL.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = targets::ALL.iter().map(|(name, _)| *name).collect();
        panic!(
            "HUSK_FUZZ_TARGET is {name:?}; the targets are: {}",
            names.join(" ")
        );
    };
    *target
}

fuzz_target!(
    init: {
        TARGET.get_or_init(chosen);
    },
    |bytes: &[u8]| {
        TARGET.get_or_init(chosen)(bytes);
    }
);
