//! `husk gc`: what supervisors left behind that died before they could remove it.
//!
//! ```text
//!   supervisor lives            left alone
//!   no record yet, and young    left alone: it is being created
//!   ended in good order         its VM and cgroup, if there still are any; its state stays, for delete to read the exit status
//!   died at work                all of it
//! ```

use std::process::ExitCode;
use std::time::SystemTime;

use super::foreground::block_on;
use super::{Failure, remains};
use crate::config::Options;
use crate::deadlines::FIRST_RECORD;
use crate::state::{Record, StateDir, StateError, Status};

/// Remove what crashed containers left behind
#[derive(Debug, clap::Args)]
pub(super) struct GcArgs {}

/// Removes it, and prints a line for each.
pub(super) fn run(options: &Options, _: &GcArgs) -> Result<ExitCode, Failure> {
    let mut code = ExitCode::SUCCESS;
    for id in StateDir::list(&options.root)? {
        match collect(options, &id, SystemTime::now()) {
            Ok(Some(removed)) => println!("{id}: removed {removed}"),
            Ok(None) => {}
            // The others are not to suffer from it.
            Err(error) => {
                eprintln!("husk: {id}: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Removes what is left of one; says what that was.
fn collect(options: &Options, id: &str, now: SystemTime) -> anyhow::Result<Option<String>> {
    let state = match StateDir::open(&options.root, id) {
        Err(StateError::NotFound(_)) => return Ok(None),
        state => state?,
    };
    let path = state.path().display();
    match state.read()? {
        Some(record) if record.supervisor.open().is_some() => Ok(None),
        Some(record) => {
            let removed = if has_ended(&record) {
                remains::stop(&state, &record)?
            } else {
                let mut removed = remove(options, &state, Some(&record))?;
                removed.push(format!("state {path}"));
                removed
            };
            Ok((!removed.is_empty()).then(|| removed.join(", ")))
        }
        None if is_young(&state, now)? => Ok(None),
        None => {
            remove(options, &state, None)?;
            Ok(Some(format!("state {path}")))
        }
    }
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

fn is_young(state: &StateDir, now: SystemTime) -> anyhow::Result<bool> {
    let made = std::fs::symlink_metadata(state.path())?.modified()?;
    Ok(now.duration_since(made).unwrap_or_default() < FIRST_RECORD)
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

        fn collect_at(&self, now: SystemTime) -> Option<String> {
            collect(&self.options, "web", now).unwrap()
        }

        fn collect(&self) -> Option<String> {
            self.collect_at(SystemTime::now())
        }
    }

    fn record(supervisor: ProcessRef, status: Status, exit_status: Option<u32>) -> Record {
        Record {
            id: "web".into(),
            bundle: "/b".into(),
            created_ns: 0,
            sandbox: None,
            supervisor,
            vmm: None,
            pid: None,
            cgroup: None,
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
            ended: None,
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
        let state = fixture.claim(Some(&record));
        let removed = fixture.collect().unwrap();
        let expected = format!("VM {}, state {}", child.id(), state.path().display());
        assert_eq!(removed, expected);
        assert!(!state.path().exists());
        child.wait().unwrap();
    }

    #[test]
    fn an_exit_status_to_be_read_stays() {
        let fixture = Fixture::new();
        let state = fixture.claim(Some(&record(DEAD, Status::Stopped, Some(3))));
        assert_eq!(fixture.collect(), None);
        assert!(state.path().exists());
    }

    #[test]
    fn a_claim_without_a_record_is_removed_when_it_is_old() {
        let fixture = Fixture::new();
        let state = fixture.claim(None);
        assert_eq!(fixture.collect(), None);
        assert!(
            fixture
                .collect_at(SystemTime::now() + FIRST_RECORD)
                .is_some()
        );
        assert!(!state.path().exists());
    }
}
