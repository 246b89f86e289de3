//! Many sandboxes, through their lives in random order, while whoever works on them is killed or runs
//! out of something; afterwards nothing may be left. `hack/soak` runs it, `hack/test` a short one.
//!
//! ```text
//!   soak cycles COUNT [SEED]
//!
//!   a survivor is started ─► census ─► [ a cycle ]* ─► the survivor is deleted ─► nothing is left
//!
//!   a cycle: steps, each a verb on one sandbox (fleet), some of them with a fault
//!            ─► delete --force of all ─► gc finds nothing ─► the census is as before
//!            ─► the survivor works, and has as many descriptors and as much memory as before
//! ```
//!
//! A breach ends the soak; what was done is printed as it is done, the seed first. A call that takes too
//! long has what is known of all husk's processes printed (evidence) while they still hang.

#![expect(clippy::unwrap_used, reason = "a soak whose set-up fails has failed")]

mod call;
mod census;
mod chance;
mod evidence;
mod fault;
mod fleet;
mod ground;
mod survivor;

use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::census::Census;
use crate::chance::Chance;
use crate::fleet::Fleet;
use crate::ground::Ground;
use crate::survivor::Survivor;

/// The one case of it that `hack/test` runs, named as the others are.
const CASE: &str = "five_cycles_leave_nothing";
const CASE_CYCLES: usize = 5;
/// The same choices in each run, so that a breach is the change's that is tested; `hack/soak` chooses
/// anew.
const CASE_SEED: u64 = 1_795_865_768;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let seed = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_secs()
    };
    match words[..] {
        ["--list", ..] => println!("{CASE}: test"),
        ["--exact", CASE, ..] => run(CASE_CYCLES, CASE_SEED),
        ["cycles", count] => run(count.parse().unwrap(), seed()),
        ["cycles", count, seed] => run(count.parse().unwrap(), seed.parse().unwrap()),
        _ => {
            eprintln!("usage: soak cycles COUNT [SEED]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn run(cycles: usize, seed: u64) {
    println!("seed {seed}");
    let mut chance = Chance::of(seed);
    evidence::prepare();
    let ground = Ground::new();
    let outset = Census::taken(&ground);
    let mut survivor = Survivor::started(&ground);
    let before = Census::taken(&ground);
    let mut fleet = Fleet::new(&ground);
    for cycle in 1..=cycles {
        println!("cycle {cycle}");
        let begin = Instant::now();
        let (steps, faults) = (fleet.steps, fleet.faults);
        fleet.live(&mut chance);
        let lived = begin.elapsed();
        fleet.remove(&mut chance);
        ground.call(&["gc"]).assert_nothing_said();
        before.assert_nothing_new(&ground);
        let removed = begin.elapsed() - lived;
        survivor.assert_flat();
        println!(
            "cycle {cycle} has left nothing: {} steps, {} faults in {lived:.1?}, removed in \
             {removed:.1?}, all in {:.1?}",
            fleet.steps - steps,
            fleet.faults - faults,
            begin.elapsed()
        );
    }
    survivor.end();
    outset.assert_nothing_new(&ground);
    println!(
        "{cycles} cycles, {} steps, {} faults",
        fleet.steps, fleet.faults
    );
}
