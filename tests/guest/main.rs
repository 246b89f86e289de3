//! What runs inside a container to do what a shell cannot: `probe CHECK...` asks something of the
//! file system in `/work/CHECK` (`$WORK/CHECK`), or
//! tries something against agent and neighbours, and prints of each that it holds, or says what does not. As the first process of
//! a guest it says so and sleeps for ever, as an agent that never answers. `probe notify WORD...` sends words to `$NOTIFY_SOCKET`.

mod attacks;
mod checks;
/// Files in memory.
#[expect(unsafe_code, reason = "mmap has no safe face")]
mod mapping;
mod posix;
#[expect(unsafe_code, reason = "ports and sockets that have no safe face")]
mod raw;
mod sharing;

use std::process::ExitCode;

use anyhow::Context as _;

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => return sleep_for_ever(),
        ["switch-off"] => {
            attacks::switch_off();
            return ExitCode::SUCCESS;
        }
        ["notify", ref words @ ..] => return notify(words),
        _ => {}
    }
    let mut status = ExitCode::SUCCESS;
    for name in &names {
        match holds(name) {
            Ok(()) => println!("{name} holds"),
            Err(error) => {
                println!("{name}: {error:#}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}

fn holds(name: &str) -> anyhow::Result<()> {
    if let Some((_, attack)) = attacks::ALL.iter().find(|attack| attack.0 == name) {
        return attack();
    }
    let mut all = checks::ALL.iter().chain(posix::ALL).chain(sharing::ALL);
    let check = all.find(|check| check.0 == name);
    let (_, check) = check.context("there is no such check")?;
    let folder = std::env::var_os("WORK").unwrap_or_else(|| "/work".into());
    let folder = std::path::Path::new(&folder).join(name);
    std::fs::create_dir_all(&folder)?;
    std::env::set_current_dir(&folder)?;
    check()
}

/// Sends each word to who waits for this container to be ready.
fn notify(words: &[&str]) -> ExitCode {
    let sent = || -> anyhow::Result<()> {
        let path = std::env::var_os("NOTIFY_SOCKET").context("NOTIFY_SOCKET is not set")?;
        let socket = std::os::unix::net::UnixDatagram::unbound()?;
        for word in words {
            socket.send_to(word.as_bytes(), &path)?;
        }
        Ok(())
    };
    match sent() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("notify: {error:#}");
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
