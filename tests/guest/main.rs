//! What runs inside a container to ask of its file system what a shell cannot: `probe CHECK` works in `/work`, and prints that the check
//! holds or says what does not. As the first process of a guest it says so and sleeps for ever, as an agent that never answers.

mod checks;
/// Files in memory.
#[expect(unsafe_code, reason = "mmap has no safe face")]
mod mapping;

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        return sleep_for_ever();
    };
    let Some(check) = checks::ALL.iter().find(|check| check.0 == name) else {
        eprintln!("probe: no check is called {name:?}");
        return ExitCode::FAILURE;
    };
    let prepared = std::fs::create_dir("/work").and_then(|()| std::env::set_current_dir("/work"));
    match prepared
        .map_err(anyhow::Error::from)
        .and_then(|()| check.1())
    {
        Ok(()) => {
            println!("{name} holds");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("probe: {name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn sleep_for_ever() -> ExitCode {
    println!("asleep");
    loop {
        std::thread::park();
    }
}
