//! What goes wrong while a call is at work.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::call::{Call, Ended};
use crate::chance::Chance;
use crate::ground::Ground;

/// Set on a machine that is thrown away afterwards: there the clock may be changed.
const VIRTUAL_HOST: &str = "HUSK_VIRTUAL_HOST";

/// Who is killed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Victim {
    Client,
    Supervisor,
    Vmm,
}

/// A fault, decided upon.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// SIGKILL, so many milliseconds after the call's begin.
    Kill(Victim, u64),
    /// The guest stands still from then on, its agent included.
    Stop(u64),
    /// The file system of the state has so many bytes left.
    NoSpace(usize),
    /// The limit on open descriptors.
    FewDescriptors(usize),
    /// The limit on memory of the call and of all that comes of it, in KiB.
    LittleMemory(usize),
    /// The clock jumps by so many seconds, and back afterwards.
    Clock(i64),
}

impl Fault {
    /// One of them, for a call that takes about so many milliseconds, and may boot a VM.
    pub(crate) fn any(chance: &mut Chance, takes_ms: usize, boots: bool) -> Self {
        let after_ms = u64::try_from(chance.below(takes_ms)).unwrap();
        match chance.below(9) {
            0 | 1 => Self::Kill(Victim::Client, after_ms),
            2 => Self::Kill(Victim::Supervisor, after_ms),
            3 => Self::Kill(Victim::Vmm, after_ms),
            4 => Self::NoSpace(chance.below(16 << 10)),
            5 => Self::FewDescriptors(4 + chance.below(60)),
            6 => Self::LittleMemory(512 + chance.below(48 << 10)),
            7 if std::env::var_os(VIRTUAL_HOST).is_some() => {
                Self::Clock(i64::try_from(chance.below(200_000)).unwrap() - 100_000)
            }
            // A boot that stands still is waited for until the agent's time is over.
            _ if boots => Self::Kill(Victim::Supervisor, after_ms),
            _ => Self::Stop(after_ms),
        }
    }

    /// Makes the call with it.
    pub(crate) fn strike(self, ground: &Ground, id: &str, words: &[&str]) -> Ended {
        let command = ground.command(words);
        match self {
            Self::Kill(victim, after_ms) => {
                let call = Call::start(command);
                if !call.ends_within(Duration::from_millis(after_ms)) {
                    kill(ground, id, victim, &call);
                }
                call.end()
            }
            Self::Stop(after_ms) => {
                let call = Call::start(command);
                let _ = call.ends_within(Duration::from_millis(after_ms));
                if let Some(vmm) = ground.process(id, "vmm") {
                    let _ = kill_process(vmm, Signal::STOP);
                }
                call.end()
            }
            Self::NoSpace(left) => {
                let _filled = Filled::but(&ground.root(), left);
                Call::start(command).end()
            }
            Self::FewDescriptors(count) => {
                let limit = format!("--nofile={count}:{count}");
                Call::start(wrapped(&["prlimit", &limit], &command)).end()
            }
            Self::LittleMemory(kib) => {
                let group = Group::of(kib);
                let enter = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", group.0.display());
                Call::start(wrapped(&["sh", "-c", &enter, "sh"], &command)).end()
            }
            Self::Clock(seconds) => {
                set_clock(seconds);
                let ended = Call::start(command).end();
                set_clock(-seconds);
                ended
            }
        }
    }
}

fn kill(ground: &Ground, id: &str, victim: Victim, call: &Call) {
    let role = match victim {
        Victim::Client => return call.signal(Signal::KILL),
        Victim::Supervisor => "supervisor",
        Victim::Vmm => "vmm",
    };
    if let Some(process) = ground.process(id, role) {
        // It may have ended.
        let _ = kill_process(process, Signal::KILL);
    }
}

/// The same call as the arguments of another program.
fn wrapped(by: &[&str], call: &Command) -> Command {
    let mut command = Command::new(by[0]);
    command.args(&by[1..]);
    command.arg(call.get_program()).args(call.get_args());
    command
}

fn set_clock(by_seconds: i64) {
    let now = clock_gettime(ClockId::Realtime);
    let then = Timespec {
        tv_sec: now.tv_sec + by_seconds,
        ..now
    };
    clock_settime(ClockId::Realtime, then).unwrap();
}

/// A file that leaves little space to others. Removed when dropped.
struct Filled(PathBuf);

impl Filled {
    fn but(folder: &Path, left: usize) -> Self {
        let path = folder.join(".filled");
        let mut file = File::create(&path).unwrap();
        // Until there is no more.
        while file.write_all(&[0; 4096]).is_ok() {}
        let length = file.metadata().unwrap().len();
        let left = u64::try_from(left).unwrap();
        file.set_len(length.saturating_sub(left)).unwrap();
        Self(path)
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A cgroup with little memory, which has enough again when this is dropped. [`remove_group`] removes it.
struct Group(PathBuf);

impl Group {
    fn of(kib: usize) -> Self {
        let path = group();
        // That of an earlier call is there if somebody was still in it.
        let _ = fs::create_dir(&path);
        fs::write(path.join("memory.max"), (kib << 10).to_string()).unwrap();
        Self(path)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("memory.max"), "max");
        remove_group();
    }
}

fn group() -> PathBuf {
    PathBuf::from(format!("/sys/fs/cgroup/husk-soak-{}", std::process::id()))
}

/// Removes the cgroup with little memory, if it is there and nobody is in it any more: the census tells
/// of it otherwise.
pub(crate) fn remove_group() {
    let _ = fs::remove_dir(group());
}
