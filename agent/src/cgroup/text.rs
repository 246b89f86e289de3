//! What the kernel says of a container's cgroups (pure). A container chooses the names of those it makes,
//! which need not be text.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The path of version 2's hierarchy in a `/proc/PID/cgroup`.
pub(crate) fn unified(table: &[u8]) -> Option<&Path> {
    let mut lines = table.split(|byte| *byte == b'\n');
    let path = lines.find_map(|line| line.strip_prefix(b"0::/"))?;
    Some(Path::new(OsStr::from_bytes(path)))
}

/// How many processes `memory.events` says were killed.
pub(crate) fn oom_kills(events: &str) -> u64 {
    let kills = events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
    kills.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_whatever_its_name() {
        let table = b"1:name=x:/elsewhere\n0::/containers/a/\xff b\n";
        let wanted = Path::new(OsStr::from_bytes(b"containers/a/\xff b"));
        assert_eq!(unified(table), Some(wanted));
        assert_eq!(unified(b""), None);
    }

    #[test]
    fn kills_are_counted_by_their_own_line() {
        let events = "low 0\noom 4\noom_kill 2\noom_group_kill 7\n";
        assert_eq!(oom_kills(events), 2);
        assert_eq!(oom_kills("oom_group_kill 7\n"), 0);
    }
}
