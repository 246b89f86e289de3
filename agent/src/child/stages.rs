//! The two stages, step by step.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::clone::{self, Side, clone_sibling};
use super::mask::Covers;
use super::{
    Doing, StepError, console, devices, hooks, io_error_text, keyring, mounts, program, quoted,
    root, schedule, user,
};
use crate::cgroup::{self, LimitError};
use crate::device_rules;
use crate::network;
use crate::plan::{
    Container, Entry, IdMap, IdMaps, Limits, Namespaces, Plan, Process, Schedule, TimeOffset,
};
use crate::report::{self, Failure, FailureKind, Report};

/// Stage 1 in the caller, stage 2 in its clone. Returns in stage 1 only, when stage 2 goes on alone.
pub(super) fn enter(
    plan: &Plan,
    status: BorrowedFd<'_>,
    target: Option<OwnedFd>,
) -> Result<(), Failure> {
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = open(&plan.cgroup, OFlags::PATH | directory, Mode::empty())
        .doing(|| format!("cannot open the cgroup {}", quoted(&plan.cgroup)))?;
    outer(plan)?;
    let cgroup_namespace = cgroup_namespace(&plan.entry)?;
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
            release(plan, child, &here)
        }
        Side::Child => {
            drop((here, cgroup));
            let inside = Inside {
                status,
                sync: &there,
                target,
                cgroup_namespace,
            };
            let failure = match become_program(plan, inside) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            let code = failure.kind.status();
            let _ = report::send(status, &Report::Failed(failure), None);
            clone::exit(code)
        }
    }
}

/// What stage 2 takes from stage 1.
struct Inside<'s> {
    status: BorrowedFd<'s>,
    /// Says when the id maps are there.
    sync: &'s OwnedFd,
    target: Option<OwnedFd>,
    /// To be joined.
    cgroup_namespace: Option<OwnedFd>,
}

/// What needs privilege outside the container. Some of it is inherited by the clone.
fn outer(plan: &Plan) -> Result<(), Failure> {
    match &plan.entry {
        Entry::Create(container) => limit(&plan.cgroup, &container.limits)?,
        Entry::Join(_) => schedule::pin(None, &plan.process.schedule.initial_cpus)?,
    }
    if let Some(score) = plan.process.oom_score_adj {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .doing(|| "cannot set oom_score_adj".to_owned())?;
    }
    for limit in &plan.process.rlimits {
        user::set_rlimit(limit)?;
    }
    Ok(())
}

fn limit(cgroup: &Path, limits: &Limits) -> Result<(), Failure> {
    let failure = |message| Failure {
        kind: FailureKind::SetUp,
        message,
    };
    cgroup::write(cgroup, limits).map_err(|error| {
        failure(match &error {
            LimitError::Write { source, .. } => format!("{error}: {}", io_error_text(source)),
            LimitError::Missing { .. } => error.to_string(),
        })
    })?;
    let Some(devices) = &limits.devices else {
        return Ok(());
    };
    device_rules::set(cgroup, devices)
        .map_err(|error| failure(format!("cannot set linux.resources.devices: {error}")))
}

/// Joins what is there already; the namespaces that are left are to be made by the clone.
fn join(entry: &Entry, target: Option<&OwnedFd>) -> Result<Namespaces, StepError> {
    match entry {
        Entry::Create(container) => {
            if container.unshare.contains(Namespaces::TIME) {
                new_clocks(&container.time_offsets)?;
            }
            let now = container.join.iter();
            for (kind, path) in now.filter(|(kind, _)| *kind != Namespaces::CGROUP) {
                setns(open_namespace(path)?, flags(*kind))
                    .doing(|| format!("cannot join namespace {}", quoted(path)))?;
            }
            // The cgroup namespace has its root where its maker is: stage 2 makes it itself.
            let late = Namespaces::CGROUP.with(Namespaces::TIME);
            Ok(container.unshare.without(late))
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

/// One that is given by path. Stage 2 joins it, for the reason that [`join`] leaves it out.
fn cgroup_namespace(entry: &Entry) -> Result<Option<OwnedFd>, StepError> {
    let Entry::Create(container) = entry else {
        return Ok(None);
    };
    let mut joined = container.join.iter();
    let found = joined.find(|(kind, _)| *kind == Namespaces::CGROUP);
    found.map(|(_, path)| open_namespace(path)).transpose()
}

fn open_namespace(path: &Path) -> Result<OwnedFd, StepError> {
    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("cannot open namespace {}", quoted(path)))
}

/// A time namespace for the clone; this process stays in its own, which is why it can still set the clocks.
fn new_clocks(offsets: &[TimeOffset]) -> Result<(), StepError> {
    unshare(flags(Namespaces::TIME)).doing(|| "cannot make a time namespace".to_owned())?;
    for offset in offsets {
        let TimeOffset {
            clock,
            seconds,
            nanoseconds,
        } = offset;
        let line = format!("{clock} {seconds} {nanoseconds}\n");
        fs::write("/proc/self/timens_offsets", line)
            .doing(|| format!("cannot set linux.timeOffsets {clock}"))?;
    }
    Ok(())
}

fn flags(namespaces: Namespaces) -> CloneFlags {
    CloneFlags::from_bits_retain(namespaces.bits().cast_signed())
}

/// Gives the process what only others can give it, and lets it go on.
fn release(plan: &Plan, child: i32, sync: &OwnedFd) -> Result<(), Failure> {
    let Schedule { cpus, .. } = &plan.process.schedule;
    match &plan.entry {
        Entry::Create(container) if container.unshare.contains(Namespaces::USER) => {
            if let Some(maps) = &container.id_maps {
                write_maps(child, maps).doing(|| "cannot write the id maps".to_owned())?;
            }
        }
        Entry::Create(_) => {}
        Entry::Join(_) => schedule::pin(Some(child), cpus)?,
    }
    schedule::set(child, &plan.process.schedule)?;
    rustix::io::write(sync, &[report::GO]).doing(|| "cannot release the process".to_owned())?;
    Ok(())
}

/// Gives the user namespace that a process is in its maps.
fn write_maps(pid: i32, maps: &IdMaps) -> std::io::Result<()> {
    for (file, maps) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
        let line = |map: &IdMap| format!("{} {} {}\n", map.inside, map.outside, map.size);
        let lines: String = maps.iter().map(line).collect();
        fs::write(format!("/proc/{pid}/{file}"), lines)?;
    }
    Ok(())
}

/// Stage 2. There is no way back from success.
fn become_program(plan: &Plan, inside: Inside<'_>) -> Result<std::convert::Infallible, Failure> {
    let Inside { status, sync, .. } = inside;
    let mut go = [0];
    // The end of the socket means that stage 1 has failed, and has said so.
    if rustix::io::read(sync, &mut go).doing(|| "cannot wait for the id maps".to_owned())? == 0 {
        clone::exit(1);
    }
    rustix::process::setsid().doing(|| "cannot begin a session".to_owned())?;
    let process = &plan.process;
    let mut start_hooks = None;
    match &plan.entry {
        Entry::Create(container) => {
            if let Some(namespace) = inside.cgroup_namespace {
                setns(namespace, flags(Namespaces::CGROUP))
                    .doing(|| "cannot join the cgroup namespace".to_owned())?;
            }
            create(container, plan, status)?;
            start_hooks = container.start_hooks.as_ref();
        }
        Entry::Join(namespaces) => {
            follow(*namespaces, process, status, inside.target)?;
            keyring::join(&plan.cgroup, keyring::Of::Exec)?;
        }
    }
    let program = program::prepare(process)?;
    let start_hooks = hooks::prepare(start_hooks)?;
    report::send(status, &Report::Ready, None).doing(|| "cannot report".to_owned())?;
    wait_for_go(status)?;
    program.run(process, start_hooks)
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
fn create(container: &Container, plan: &Plan, status: BorrowedFd<'_>) -> Result<(), Failure> {
    let process = &plan.process;
    if container.namespaces().contains(Namespaces::USER) {
        user::become_root()?;
    }
    keyring::join(&plan.cgroup, keyring::Of::First(container.namespaces()))?;
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
    let late = mounts::mount_all(&root, container, &plan.cgroup)?;
    devices::make(&root, container)?;
    root::make_cwd(&root, &process.cwd)?;
    let covers = Covers::prepare()?;
    let root = root.pivot()?;
    if process.terminal {
        let slave = console::open(process, status)?;
        console::bind(&root, &slave)?;
        console::attach(&slave)?;
    }
    mounts::restrict(&root, container, &late, covers)?;
    root::propagate(container.propagation)?;
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
