//! The two stages, step by step.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::clone::{self, Side, clone_sibling};
use super::{Doing, StepError, console, devices, mounts, program, quoted, root, user};
use crate::cgroup;
use crate::network;
use crate::plan::{Container, Entry, IdMap, Namespaces, Plan, Process};
use crate::report::{self, Failure, FailureKind, Report};

/// Stage 1 in the caller, stage 2 in its clone. Returns in stage 1 only, when stage 2 goes on alone.
pub(super) fn enter(
    plan: &Plan,
    status: BorrowedFd<'_>,
    target: Option<OwnedFd>,
) -> Result<(), Failure> {
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = open(&plan.cgroup, OFlags::PATH | directory, Mode::empty())
        .doing(|| "cannot open the cgroup".to_owned())?;
    if let Entry::Create(container) = &plan.entry
        && let Some(limits) = &container.limits
    {
        limit(&plan.cgroup, limits)?;
    }
    outer_attributes(&plan.process)?;
    let fresh = join(&plan.entry, target.as_ref())?;
    let (here, there) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .doing(|| "cannot make a socket pair".to_owned())?;
    match clone_sibling(fresh, &cgroup).doing(|| "cannot make the process".to_owned())? {
        Side::Parent { child, pidfd } => {
            drop(there);
            report::send(status, &Report::Spawned(child), Some(pidfd.as_fd()))
                .doing(|| "cannot report the process".to_owned())?;
            release(&plan.entry, child, &here)
        }
        Side::Child => {
            drop((here, cgroup));
            let failure = match become_program(plan, status, &there, target) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            let code = failure.kind.status();
            let _ = report::send(status, &Report::Failed(failure), None);
            clone::exit(code)
        }
    }
}

/// Loading a device program raises this process's limit on locked memory, which the container would inherit.
fn limit(cgroup: &Path, limits: &LinuxResources) -> Result<(), Failure> {
    let memlock = getrlimit(Resource::Memlock);
    cgroup::limit(cgroup, limits).map_err(|error| {
        let message = format!("cannot set limits: {error}");
        Failure {
            kind: FailureKind::SetUp,
            message,
        }
    })?;
    setrlimit(Resource::Memlock, memlock).doing(|| "cannot restore a resource limit".to_owned())?;
    Ok(())
}

/// What needs privilege outside the container and is inherited by the clone.
fn outer_attributes(process: &Process) -> Result<(), StepError> {
    if let Some(score) = process.oom_score_adj {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .doing(|| "cannot set oom_score_adj".to_owned())?;
    }
    for limit in &process.rlimits {
        user::set_rlimit(limit)?;
    }
    Ok(())
}

/// Joins what is there already; the namespaces that are left are to be made by the clone.
fn join(entry: &Entry, target: Option<&OwnedFd>) -> Result<Namespaces, StepError> {
    match entry {
        Entry::Create(container) => {
            for (kind, path) in &container.join {
                let namespace = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .doing(|| format!("cannot open namespace {}", quoted(path)))?;
                setns(namespace, flags(*kind))
                    .doing(|| format!("cannot join namespace {}", quoted(path)))?;
            }
            // The cgroup namespace has its root where its maker is: stage 2 makes it itself.
            Ok(container.unshare.without(Namespaces::CGROUP))
        }
        Entry::Join(namespaces) => {
            // Nobody is moved into a cgroup from inside a cgroup namespace that the cgroup is the root of: stage 2 joins that one.
            let now = namespaces.without(Namespaces::CGROUP);
            if let Some(target) = target {
                setns(target, flags(now)).doing(|| "cannot join the container".to_owned())?;
            }
            Ok(Namespaces::default())
        }
    }
}

fn flags(namespaces: Namespaces) -> CloneFlags {
    CloneFlags::from_bits_retain(namespaces.bits().cast_signed())
}

/// Gives the process its id maps and lets it go on.
fn release(entry: &Entry, child: i32, sync: &OwnedFd) -> Result<(), Failure> {
    if let Entry::Create(container) = entry
        && let Some(maps) = &container.id_maps
    {
        write_map(child, "uid_map", &maps.uids)?;
        write_map(child, "gid_map", &maps.gids)?;
    }
    rustix::io::write(sync, &[report::GO]).doing(|| "cannot release the process".to_owned())?;
    Ok(())
}

fn write_map(pid: i32, file: &str, maps: &[IdMap]) -> Result<(), StepError> {
    let lines: String = maps
        .iter()
        .map(|map| format!("{} {} {}\n", map.inside, map.outside, map.size))
        .collect();
    fs::write(format!("/proc/{pid}/{file}"), lines).doing(|| format!("cannot write {file}"))
}

/// Stage 2. There is no way back from success.
fn become_program(
    plan: &Plan,
    status: BorrowedFd<'_>,
    sync: &OwnedFd,
    target: Option<OwnedFd>,
) -> Result<std::convert::Infallible, Failure> {
    let mut go = [0];
    // The end of the socket means that stage 1 has failed, and has said so.
    if rustix::io::read(sync, &mut go).doing(|| "cannot wait for the id maps".to_owned())? == 0 {
        clone::exit(1);
    }
    rustix::process::setsid().doing(|| "cannot begin a session".to_owned())?;
    let process = &plan.process;
    match &plan.entry {
        Entry::Create(container) => create(container, &plan.cgroup, process, status)?,
        Entry::Join(namespaces) => follow(*namespaces, process, status, target)?,
    }
    let program = program::prepare(process)?;
    report::send(status, &Report::Ready, None).doing(|| "cannot report".to_owned())?;
    wait_for_go(status)?;
    program.run(process)
}

/// The rest of joining a container.
fn follow(
    namespaces: Namespaces,
    process: &Process,
    status: BorrowedFd<'_>,
    target: Option<OwnedFd>,
) -> Result<(), StepError> {
    if namespaces.contains(Namespaces::USER) {
        user::become_root()?;
    }
    if let Some(target) = target.filter(|_| namespaces.contains(Namespaces::CGROUP)) {
        setns(target, flags(Namespaces::CGROUP))
            .doing(|| "cannot join the container".to_owned())?;
    }
    if process.terminal {
        let slave = console::open(process, status)?;
        console::attach(&slave)?;
    }
    Ok(())
}

/// Blocks until the agent says so; without the agent there is no reason to go on.
fn wait_for_go(status: BorrowedFd<'_>) -> Result<(), StepError> {
    let mut go = [0];
    match rustix::io::read(status, &mut go).doing(|| "cannot wait for the start".to_owned())? {
        0 => clone::exit(1),
        _ => Ok(()),
    }
}

/// From new namespaces to a container: names, network, mounts, its root.
fn create(
    container: &Container,
    cgroup: &Path,
    process: &Process,
    status: BorrowedFd<'_>,
) -> Result<(), Failure> {
    if container.unshare.contains(Namespaces::USER) {
        user::become_root()?;
    }
    if container.unshare.contains(Namespaces::CGROUP) {
        unshare(CloneFlags::CLONE_NEWCGROUP)
            .doing(|| "cannot make a cgroup namespace".to_owned())?;
    }
    if container.unshare.contains(Namespaces::UTS) {
        names(container)?;
    }
    if container.unshare.contains(Namespaces::NETWORK) {
        network::loopback_up().doing(|| "cannot bring up the loopback interface".to_owned())?;
    }
    for (path, value) in &container.sysctl {
        fs::write(Path::new("/proc/sys").join(path), value)
            .doing(|| format!("cannot set sysctl {}", quoted(path)))?;
    }
    let root = root::Root::mount(container)?;
    let late = mounts::mount_all(&root, container, cgroup)?;
    devices::make(&root, container)?;
    root::make_cwd(&root, &process.cwd)?;
    let root = root.pivot(container)?;
    if process.terminal {
        let slave = console::open(process, status)?;
        console::bind(&root, &slave)?;
        console::attach(&slave)?;
    }
    mounts::restrict(&root, container, &late)?;
    Ok(())
}

fn names(container: &Container) -> Result<(), StepError> {
    if let Some(name) = &container.hostname {
        rustix::system::sethostname(name.as_bytes())
            .doing(|| format!("cannot set hostname {name:?}"))?;
    }
    if let Some(name) = &container.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .doing(|| format!("cannot set domainname {name:?}"))?;
    }
    Ok(())
}
