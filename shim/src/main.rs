//! The executable `husk`, see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    husk::main()
}
