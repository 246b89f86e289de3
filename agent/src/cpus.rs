//! How many of the machine's CPUs are online.
//!
//! The kernel knows all CPUs there are from the beginning, and those that are not wanted are parked: present, and offline. The first CPUs
//! are the ones that are online, so that which ones they are follows from how many. A container sees those that are online, if its
//! cpuset does not say otherwise.
//!
//! Ways to fail: more are wanted than there are, or the kernel does not switch one; those before it stay as they were switched.

use std::fs;
use std::io;
use std::path::PathBuf;

const FOLDER: &str = "/sys/devices/system/cpu";

/// Why there are not as many as wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CpusError {
    #[error("{wanted} online CPUs are wanted, and the machine has 1 to {present}")]
    Count { wanted: u32, present: usize },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a list of CPUs: {text:?}", path.display())]
    List { path: PathBuf, text: String },
    #[error("cannot switch cpu{cpu} {}", if *on { "on" } else { "off" })]
    Switch {
        cpu: u16,
        on: bool,
        #[source]
        source: io::Error,
    },
}

/// Brings the first `count` CPUs online and all others offline.
pub(crate) fn online(count: u32) -> Result<(), CpusError> {
    let present = list("present")?;
    let steps = plan(&present, &list("online")?, count)?;
    for (cpu, on) in steps {
        let path = format!("{FOLDER}/cpu{cpu}/online");
        fs::write(path, if on { "1" } else { "0" }).map_err(|source| CpusError::Switch {
            cpu,
            on,
            source,
        })?;
    }
    Ok(())
}

/// What to switch, in this order: on from the first one, off from the last one.
fn plan(present: &[u16], online: &[u16], count: u32) -> Result<Vec<(u16, bool)>, CpusError> {
    let error = CpusError::Count {
        wanted: count,
        present: present.len(),
    };
    let wanted = match usize::try_from(count) {
        Ok(wanted) if (1..=present.len()).contains(&wanted) => wanted,
        _ => return Err(error),
    };
    let (on, off) = present.split_at(wanted);
    let on = on.iter().filter(|cpu| !online.contains(cpu));
    let off = off.iter().rev().filter(|cpu| online.contains(cpu));
    Ok(on
        .map(|cpu| (*cpu, true))
        .chain(off.map(|cpu| (*cpu, false)))
        .collect())
}

fn list(name: &str) -> Result<Vec<u16>, CpusError> {
    let path = PathBuf::from(FOLDER).join(name);
    match fs::read_to_string(&path) {
        Ok(text) => parse(&text).ok_or(CpusError::List { path, text }),
        Err(source) => Err(CpusError::Read { path, source }),
    }
}

/// A list of the kernel's: `0-2,5`.
fn parse(text: &str) -> Option<Vec<u16>> {
    let mut cpus = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ones_are_those_that_are_online() {
        let steps = |online: &[u16], count| plan(&[0, 1, 2, 3], online, count).unwrap();
        assert_eq!(steps(&[0], 3), [(1, true), (2, true)]);
        assert_eq!(steps(&[0, 1, 2, 3], 2), [(3, false), (2, false)]);
        assert_eq!(steps(&[0, 3], 2), [(1, true), (3, false)]);
        assert_eq!(steps(&[0, 1], 2), []);
    }

    #[test]
    fn impossible_counts_are_refused_with_what_is_possible() {
        for count in [0, 3] {
            let error = plan(&[0, 1], &[0], count).unwrap_err().to_string();
            let wanted = format!("{count} online CPUs are wanted, and the machine has 1 to 2");
            assert_eq!(error, wanted);
        }
    }

    #[test]
    fn lists_are_the_kernels() {
        assert_eq!(parse("0\n"), Some(vec![0]));
        assert_eq!(parse("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse(""), None);
        assert_eq!(parse("0-x"), None);
    }
}
