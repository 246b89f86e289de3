//! What runs inside a container to ask of its file system what a shell cannot: `probe CHECK...` works in `/work/CHECK`, and prints of
//! each check that it holds, or says what does not. As the first process of a guest it says so and sleeps for ever, as an agent that
//! never answers.

mod checks;
/// Files in memory.
#[expect(unsafe_code, reason = "mmap has no safe face")]
mod mapping;

use std::process::ExitCode;

use anyhow::Context as _;

fn main() -> ExitCode {
    if std::env::args().len() < 2 {
        return sleep_for_ever();
    }
    let mut status = ExitCode::SUCCESS;
    for name in std::env::args().skip(1) {
        match holds(&name) {
            Ok(()) => println!("{name} holds"),
            Err(error) => {
                eprintln!("probe: {name}: {error:#}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}

fn holds(name: &str) -> anyhow::Result<()> {
    let check = checks::ALL.iter().find(|check| check.0 == name);
    let (_, check) = check.context("there is no such check")?;
    let folder = std::path::Path::new("/work").join(name);
    std::fs::create_dir_all(&folder)?;
    std::env::set_current_dir(&folder)?;
    check()
}

fn sleep_for_ever() -> ExitCode {
    println!("asleep");
    loop {
        std::thread::park();
    }
}
