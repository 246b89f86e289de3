//! Hooks that run on the host, around the container's life in the guest.
//!
//! ```text
//!   VM is up ─► prestart, createRuntime, createContainer ─► container made in the guest ─► started ─► poststart ─ ··· ─► deleted ─► poststop
//! ```
//!
//! A hook is a program of the host, with the container's state as JSON on its standard input; the pid in there is the one
//! that is reported for the container. It runs in the supervisor's mount namespace, where it sees the host's mounts, and mounts of its own
//! are not seen by the host. Its processes are a group, which is killed as one when it takes too long, and its limit of descriptors is
//! that of whoever started husk. A hook that fails before the container is made fails the create; a later one costs a warning, as the OCI
//! specification has it up to version 1.2. Since 1.3 a poststart hook that fails stops the container. The error has the hook's own words, as far as
//! they are not too many.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use oci_spec::runtime as oci;
use rustix::process::{Pid, Resource, Signal, kill_process_group, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use crate::inherited;
use crate::spec::VERSION;
use crate::state::Status;
use crate::storage::Storage;

mod said;

use said::Said;

/// A container's hooks, by when they run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hooks {
    /// prestart, then createRuntime, then createContainer.
    pub(crate) create: Vec<Hook>,
    pub(crate) poststart: Vec<Hook>,
    /// One of them that fails stops the container.
    pub(crate) poststart_must_succeed: bool,
    pub(crate) poststop: Vec<Hook>,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum HookKind {
    Prestart,
    CreateRuntime,
    CreateContainer,
    Poststart,
    /// Those are the ones that records have.
    #[default]
    Poststop,
}

/// One program to run.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Hook {
    #[serde(default)]
    kind: HookKind,
    /// Among those of its kind.
    #[serde(default)]
    index: usize,
    path: PathBuf,
    /// With the program's name for itself first, when there are any.
    args: Vec<String>,
    /// `NAME=value` each.
    env: Vec<String>,
    timeout: Option<Duration>,
}

/// The container's state, as the OCI runtime specification has it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HookState {
    oci_version: &'static str,
    pub(crate) id: String,
    pub(crate) status: Status,
    pub(crate) pid: i32,
    pub(crate) bundle: PathBuf,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A hook that failed, in words that scripts know from runc.
#[derive(Debug, thiserror::Error)]
#[error("error running {kind} hook #{index}: {}", path.display())]
pub(crate) struct HookError {
    kind: HookKind,
    index: usize,
    path: PathBuf,
    #[source]
    pub(crate) why: HookFailure,
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookFailure {
    #[error("it cannot be run")]
    Run(#[source] io::Error),
    #[error("{status}{said}")]
    Failed { status: ExitStatus, said: String },
    #[error("it took longer than {} s{said}", after.as_secs())]
    TimedOut { after: Duration, said: String },
}

impl fmt::Display for HookKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

impl HookState {
    /// The state of container `id`.
    pub(crate) fn new(id: &str, status: Status, pid: i32, bundle: &Path) -> Self {
        Self {
            oci_version: VERSION,
            id: id.to_owned(),
            status,
            pid,
            bundle: bundle.to_owned(),
            annotations: BTreeMap::new(),
        }
    }
}

impl Hook {
    /// Takes over the configuration's hooks of one kind.
    pub(crate) fn all_of(kind: HookKind, hooks: Option<&Vec<oci::Hook>>) -> Vec<Self> {
        let hooks = hooks.map(Vec::as_slice).unwrap_or_default();
        let numbered = hooks.iter().enumerate();
        numbered
            .map(|(index, hook)| Self::new(kind, index, hook))
            .collect()
    }

    fn new(kind: HookKind, index: usize, hook: &oci::Hook) -> Self {
        let seconds = hook
            .timeout()
            .and_then(|timeout| u64::try_from(timeout).ok());
        Self {
            kind,
            index,
            path: hook.path().clone(),
            args: hook.args().clone().unwrap_or_default(),
            env: hook.env().clone().unwrap_or_default(),
            timeout: seconds.map(Duration::from_secs),
        }
    }

    /// Whether the specification's demand is met.
    pub(crate) fn is_absolute(&self) -> bool {
        self.path.is_absolute()
    }

    /// The program.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    async fn run(&self, storage: &Storage, state: &HookState) -> Result<(), HookError> {
        let json = serde_json::to_vec(state).map_err(|e| HookFailure::Run(e.into()));
        let done = match json {
            Ok(json) => self.run_with(storage, &json, &state.bundle).await,
            Err(why) => Err(why),
        };
        done.map_err(|why| HookError {
            kind: self.kind,
            index: self.index,
            path: self.path.clone(),
            why,
        })
    }

    async fn run_with(
        &self,
        storage: &Storage,
        state: &[u8],
        bundle: &Path,
    ) -> Result<(), HookFailure> {
        let failed = HookFailure::Run;
        let command = self.command(bundle);
        // Neither the bundle's file system nor that of the program need answer.
        let started = storage.run_or_undo(
            "a hook",
            move || start(command),
            |late| {
                drop(late.map(|mut running| running.kill()));
            },
        );
        let mut running = started
            .await
            .map_err(|e| failed(io::Error::other(e)))?
            .map_err(failed)?;
        let ended = running.end(state);
        let status = match self.timeout {
            None => ended.await,
            Some(after) => match tokio::time::timeout(after, ended).await {
                Ok(status) => status,
                Err(_) => {
                    running.kill();
                    let said = running.said.text();
                    return Err(HookFailure::TimedOut { after, said });
                }
            },
        };
        match status.map_err(failed)? {
            status if status.success() => Ok(()),
            status => Err(HookFailure::Failed {
                status,
                said: running.said.text(),
            }),
        }
    }

    fn command(&self, bundle: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command
            .env_clear()
            .envs(self.env.iter().filter_map(|pair| pair.split_once('=')))
            .current_dir(bundle)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some((name, args)) = self.args.split_first() {
            command.arg0(name).args(args);
        }
        command
    }
}

/// A hook's program, and what it has started in its process group.
struct Running {
    child: Child,
    group: Option<Pid>,
    said: Said,
}

/// Executes the program, with the limit of descriptors that this process was started with.
fn start(mut command: Command) -> io::Result<Running> {
    let limit = inherited::descriptor_limit();
    // SAFETY: between fork and exec the closure makes one system call; it takes no lock and no memory.
    unsafe {
        command.pre_exec(move || match limit {
            Some(limit) => Ok(setrlimit(Resource::Nofile, limit)?),
            None => Ok(()),
        });
    }
    let mut child = command.spawn()?;
    let said = Said::of(&mut child);
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    Ok(Running {
        child,
        group: pid.and_then(Pid::from_raw),
        said,
    })
}

impl Running {
    async fn end(&mut self, state: &[u8]) -> io::Result<ExitStatus> {
        let Self { child, said, .. } = self;
        let ended = async {
            if let Some(mut stdin) = child.stdin.take() {
                match stdin.write_all(state).await {
                    // It need not read its state.
                    Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e),
                    _ => {}
                }
            }
            child.wait().await
        };
        tokio::pin!(ended);
        loop {
            tokio::select! {
                biased;
                ended = &mut ended => return ended,
                () = said.hear() => {}
            }
        }
    }

    /// Kills all of its group. The program itself has not been waited for, so that the number is no other group's.
    fn kill(&mut self) {
        if let Some(group) = self.group
            && let Err(e) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!("the hook's processes are gone: {e}");
        }
    }
}

/// Runs hooks in order, up to the first that fails.
pub(crate) async fn run(
    storage: &Storage,
    hooks: &[Hook],
    state: &HookState,
) -> Result<(), HookError> {
    for hook in hooks {
        hook.run(storage, state).await?;
    }
    Ok(())
}

/// Runs all hooks; one that fails costs a warning.
pub(crate) async fn run_anyway(hooks: &[Hook], state: &HookState) {
    let storage = Storage::default();
    for hook in hooks {
        if let Err(e) = run(&storage, std::slice::from_ref(hook), state).await {
            let error = anyhow::Error::from(e);
            tracing::warn!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::said::SAID_MAX_BYTES;
    use super::*;

    fn shell(script: &str, timeout: Option<Duration>) -> Hook {
        Hook {
            kind: HookKind::CreateRuntime,
            index: 1,
            path: "/bin/sh".into(),
            args: ["hook", "-c", script].map(String::from).to_vec(),
            env: vec!["OUT=out".into()],
            timeout,
        }
    }

    fn state(bundle: &Path) -> HookState {
        HookState::new("web", Status::Creating, 7, bundle)
    }

    #[tokio::test]
    async fn a_hook_gets_state_arguments_and_environment() {
        let bundle = tempfile::tempdir().unwrap();
        let hook = shell("cat >$OUT; echo \"$0 $HOME\" >>$OUT", None);
        run(&Storage::default(), &[hook], &state(bundle.path()))
            .await
            .unwrap();
        let out = std::fs::read_to_string(bundle.path().join("out")).unwrap();
        let (json, rest) = out.rsplit_once('}').unwrap();
        let got: serde_json::Value = serde_json::from_str(&format!("{json}}}")).unwrap();
        assert_eq!(
            (&got["id"], &got["status"]),
            (&"web".into(), &"creating".into())
        );
        assert_eq!(
            (&got["pid"], &got["ociVersion"]),
            (&7.into(), &VERSION.into())
        );
        assert_eq!(rest.trim(), "hook");
    }

    #[tokio::test]
    async fn the_first_failure_ends_the_row() {
        let bundle = tempfile::tempdir().unwrap();
        let hooks = [shell("exit 3", None), shell("touch out", None)];
        let error = run(&Storage::default(), &hooks, &state(bundle.path()))
            .await
            .unwrap_err();
        assert!(
            matches!(error.why, HookFailure::Failed { status, .. } if status.code() == Some(3))
        );
        assert!(!bundle.path().join("out").exists());
        run_anyway(&hooks, &state(bundle.path())).await;
        assert!(bundle.path().join("out").exists());
    }

    #[tokio::test]
    async fn a_hook_that_takes_too_long_is_killed() {
        let bundle = tempfile::tempdir().unwrap();
        let hook = shell("exec sleep 60", Some(Duration::ZERO));
        let error = run(&Storage::default(), &[hook], &state(bundle.path()))
            .await
            .unwrap_err();
        assert!(matches!(error.why, HookFailure::TimedOut { .. }));
    }

    /// Time stands still while the test's own blocking work is under way, and passes at once when all wait.
    #[tokio::test(start_paused = true)]
    async fn what_a_hook_has_started_is_killed_with_it() {
        let bundle = tempfile::tempdir().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        // Only the hook's child has the pipe's writing end once this process has closed its own.
        let fd = std::os::fd::AsRawFd::as_raw_fd(&writer);
        let script = format!(
            "(echo; exec sleep 1000) >/proc/{}/fd/{fd} & wait",
            std::process::id()
        );
        let begun = tokio::task::spawn_blocking(move || {
            io::Read::read_exact(&mut reader, &mut [0; 1]).unwrap();
            reader
        });
        let path = bundle.path().to_owned();
        let hook = tokio::spawn(async move {
            let hook = shell(&script, Some(Duration::from_secs(1000)));
            run(&Storage::default(), &[hook], &state(&path)).await
        });
        let mut reader = begun.await.unwrap();
        drop(writer);
        let error = hook.await.unwrap();
        let why = error.unwrap_err().why;
        assert!(matches!(why, HookFailure::TimedOut { .. }));
        let end = move || io::Read::read(&mut reader, &mut [0; 1]).unwrap();
        assert_eq!(tokio::task::spawn_blocking(end).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_missing_hook_is_named() {
        let mut hook = shell("", None);
        hook.path = "/none/hook".into();
        let error = run(&Storage::default(), &[hook], &state(Path::new("/")))
            .await
            .unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(error));
        assert_eq!(
            text,
            "error running createRuntime hook #1: /none/hook: it cannot be run: \
             No such file or directory (os error 2)"
        );
    }

    #[tokio::test]
    async fn an_error_has_the_hooks_own_words_up_to_a_bound() {
        let bundle = tempfile::tempdir().unwrap();
        let said = async |script: &str| {
            let hook = shell(script, None);
            let run = run(&Storage::default(), &[hook], &state(bundle.path())).await;
            format!("{:#}", anyhow::Error::from(run.unwrap_err()))
        };
        assert_eq!(
            said("echo out; echo no network >&2; echo at all >&2; exit 3").await,
            "error running createRuntime hook #1: /bin/sh: exit status: 3, \
             stdout: out, stderr: no network at all"
        );
        // More than a pipe holds: the hook is not kept waiting.
        let flood = said("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 4").await;
        assert!(
            flood.contains("exit status: 4, stderr: xxx"),
            "{flood:.200}"
        );
        assert!(flood.len() < SAID_MAX_BYTES + 200, "{}", flood.len());
    }
}
