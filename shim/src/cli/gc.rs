//! `husk gc`: what supervisors left behind that died before they could remove it.
//!
//! ```text
//!   supervisor lives, or
//!   somebody else cleans up     locked: left alone
//!   ended in good order         its VM and cgroup, if there still are any; its state stays, for delete to read the exit status
//!   died at work                all of it
//!   of no id                    who was making or removing it died: what husk has put there
//! ```

use std::process::ExitCode;
use std::time::Duration;

use super::foreground::block_on;
use super::{Failure, remains};
use crate::config::Options;
use crate::state::{Record, StateDir, StateError, Status};

/// Remove what crashed containers left behind
#[derive(Debug, clap::Args)]
pub(super) struct GcArgs {}

/// Removes it, and prints a line for each.
pub(super) fn run(options: &Options, _: &GcArgs) -> Result<ExitCode, Failure> {
    let ids = StateDir::list(&options.root)?;
    let of_ids = ids.into_iter().map(|id| {
        let collected = collect(options, &id);
        (id, collected)
    });
    let nameless = StateDir::nameless(&options.root)?;
    let of_none = nameless.into_iter().map(|name| {
        let collected = StateDir::collect_nameless(&options.root, &name);
        let collected = collected.map(|path| path.map(|path| format!("state {}", path.display())));
        (name, collected.map_err(anyhow::Error::from))
    });
    let mut code = ExitCode::SUCCESS;
    for (name, collected) in of_ids.chain(of_none) {
        match collected {
            Ok(Some(removed)) => println!("{name}: removed {removed}"),
            Ok(None) => {}
            // The others are not to suffer from it.
            Err(error) => {
                eprintln!("husk: error: {name}: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Removes what is left of one; says what that was.
fn collect(options: &Options, id: &str) -> anyhow::Result<Option<String>> {
    let state = match StateDir::open(&options.root, id) {
        Err(StateError::NotFound(_)) => return Ok(None),
        state => state?,
    };
    match state.lock(Duration::ZERO) {
        Err(StateError::Busy(_) | StateError::NotFound(_)) => return Ok(None),
        locked => locked?,
    }
    let record = state.read()?;
    let removed = match record {
        Some(record) if has_ended(&record) => remains::stop(&state, &record)?,
        record => {
            let mut removed = remove(options, &state, record.as_ref())?;
            removed.push(format!("state {}", state.path().display()));
            removed
        }
    };
    Ok((!removed.is_empty()).then(|| removed.join(", ")))
}

fn remove(
    options: &Options,
    state: &StateDir,
    record: Option<&Record>,
) -> anyhow::Result<Vec<String>> {
    block_on(async { Ok(remains::remove(options, state, record).await?) })
        .map_err(|failure| failure.error)
}

/// Whether all its containers have an exit status to be read.
fn has_ended(record: &Record) -> bool {
    !record.containers.is_empty()
        && record
            .containers
            .iter()
            .all(|c| c.status == Status::Stopped && c.exit_status.is_some())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use clap::Parser as _;

    use super::*;
    use crate::cli::CommandLine;
    use crate::state::{ContainerRecord, ProcessRef};

    const DEAD: ProcessRef = ProcessRef {
        pid: 1,
        start_time: u64::MAX,
    };

    struct Fixture {
        root: tempfile::TempDir,
        options: Options,
    }

    impl Fixture {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().to_str().unwrap();
            let options = CommandLine::try_parse_from(["husk", "--root", path, "gc"]).unwrap();
            Self {
                options: options.options,
                root,
            }
        }

        fn claim(&self, record: Option<&Record>) -> StateDir {
            let state = StateDir::create(self.root.path(), "web").unwrap();
            if let Some(record) = record {
                state.write(record).unwrap();
            }
            state
        }

        fn collect(&self) -> Option<String> {
            collect(&self.options, "web").unwrap()
        }
    }

    fn record(supervisor: ProcessRef, status: Status, exit_status: Option<u32>) -> Record {
        Record {
            containers: vec![ContainerRecord {
                id: "web".into(),
                bundle: "/b".into(),
                rootfs: "/b/rootfs".into(),
                status,
                created_ns: 0,
                exit_status,
                annotations: std::collections::BTreeMap::new(),
                poststop: Vec::new(),
                stand_in: None,
            }],
            ..Record::new("web", supervisor)
        }
    }

    fn vmm() -> (Child, Option<ProcessRef>) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().try_into().unwrap();
        (child, ProcessRef::of(pid))
    }

    #[test]
    fn what_lives_is_left_alone() {
        let fixture = Fixture::new();
        let this = ProcessRef::of(std::process::id().try_into().unwrap()).unwrap();
        let (mut child, vmm) = vmm();
        let mut record = record(this, Status::Running, None);
        record.vmm = vmm;
        let state = fixture.claim(Some(&record));
        assert_eq!(fixture.collect(), None);
        assert!(state.path().exists() && child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_died_at_work_is_removed_with_its_vm() {
        let fixture = Fixture::new();
        let (mut child, vmm) = vmm();
        let mut record = record(DEAD, Status::Running, None);
        record.vmm = vmm;
        let path = fixture.claim(Some(&record)).path();
        let removed = fixture.collect().unwrap();
        let expected = format!("VM {}, state {}", child.id(), path.display());
        assert_eq!(removed, expected);
        assert!(!path.exists());
        child.wait().unwrap();
    }

    #[test]
    fn an_exit_status_to_be_read_stays() {
        let fixture = Fixture::new();
        let record = record(DEAD, Status::Stopped, Some(3));
        let path = fixture.claim(Some(&record)).path();
        assert_eq!(fixture.collect(), None);
        assert!(path.exists());
    }

    #[test]
    fn a_claim_without_a_record_is_removed_when_nobody_has_it() {
        let fixture = Fixture::new();
        let state = fixture.claim(None);
        assert_eq!(fixture.collect(), None);
        let path = state.path();
        drop(state);
        assert!(fixture.collect().is_some());
        assert!(!path.exists());
    }
}
