//! `husk-vmm`: one process, one microVM. Arguments and configuration in, exit status out; the rest is in the library.

use std::io::{self, Write};
use std::process;

use husk_vmm::args::{self, HELP, Invocation};
use husk_vmm::{causes, probe, run};
use vmm_api::ExitCode;

fn main() -> process::ExitCode {
    let code = match args::parse(std::env::args_os().skip(1)) {
        Ok(Invocation::Help) => print(HELP),
        Ok(Invocation::Version) => print(concat!("husk-vmm ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Invocation::Probe) => match probe::line() {
            Ok(line) => print(&line),
            Err(error) => fail(&error, ExitCode::Failed),
        },
        Ok(Invocation::Run(arguments)) => match run::run(&arguments) {
            Ok(reason) => run::exit_code(reason),
            Err(error) => fail(&error, error.exit_code()),
        },
        Err(error) => fail(&error, ExitCode::Usage),
    };
    process::ExitCode::from(u8::from(code))
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::PoweredOff,
        Err(error) => fail(&error, ExitCode::Failed),
    }
}

/// One line with the whole chain.
fn fail(error: &dyn std::error::Error, code: ExitCode) -> ExitCode {
    eprintln!("husk-vmm: {}", causes::line(error));
    code
}
