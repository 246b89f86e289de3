//! The container that `run` and `create` are told to make, and what they look at before anything is started: the id, the bundle, the installed files, the right to use KVM. So a mistake of the
//! user's costs no VM and leaves nothing behind.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use super::neighbour;
use crate::assets;
use crate::config::{Config, Options};
use crate::kvm;
use crate::shm;
use crate::spec::{self, HostPart};
use crate::state::check_id;

/// How a container is to be made.
#[derive(Debug, clap::Args)]
pub(super) struct ContainerArgs {
    /// The bundle's directory, with config.json in it
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(super) bundle: PathBuf,
    /// Write the container's process id on this host to FILE
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// Send the container's terminal to this socket, if the container is in the background
    #[arg(long, value_name = "SOCKET")]
    pub(super) console_socket: Option<PathBuf>,
    /// Must be 0: descriptors of this host cannot go into a VM
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Accepted; the root file system is the VM's in any case
    #[arg(long)]
    no_pivot: bool,
    /// Accepted; the VM has keyrings of its own in any case
    #[arg(long)]
    no_new_keyring: bool,
    /// Be the process in the background that stands for the container; say so to this descriptor
    #[arg(long, value_name = "FD", hide = true)]
    pub(super) report_to: Option<i32>,
    /// A name for the container, not in use yet
    pub(super) id: String,
}

/// A bundle that can be run here, as far as can be told.
#[derive(Debug)]
pub(super) struct Bundle {
    /// Absolute.
    pub(super) path: PathBuf,
    /// What it needs here.
    pub(super) host: HostPart,
}

/// Looks at the bundle.
pub(super) fn inspect(options: &Options, args: &ContainerArgs) -> anyhow::Result<Bundle> {
    check_id(&args.id)?;
    refuse_descriptors(args.preserve_fds)?;
    let mut bundle = read(&args.bundle, &args.id)?;
    if !rustix::process::geteuid().is_root() {
        return Err(anyhow!(
            "husk mounts file systems and makes cgroups: run it as root"
        ));
    }
    assets::check(&Config::load(options)?)?;
    kvm::access()?;
    if bundle.host.sandbox.is_none() {
        let sandbox = neighbour::sandbox(options, &bundle.host);
        bundle.host.sandbox =
            sandbox.with_context(|| format!("cannot run {}", bundle.path.display()))?;
    }
    Ok(bundle)
}

/// What a caller wants to pass on beside the standard streams. Sockets of an activated service are no part of the command line, so a caller
/// may not know that it has any.
pub(super) fn refuse_descriptors(count: u32) -> anyhow::Result<()> {
    anyhow::ensure!(
        count == 0,
        "--preserve-fds {count}: descriptors of this host cannot go into a VM"
    );
    if std::env::var_os("LISTEN_FDS").is_some() {
        tracing::warn!("LISTEN_FDS is ignored: descriptors of this host cannot go into a VM");
    }
    Ok(())
}

fn read(dir: &Path, id: &str) -> anyhow::Result<Bundle> {
    let path = std::path::absolute(dir).context("cannot find the bundle")?;
    let file = path.join("config.json");
    let config = std::fs::read(&file).with_context(|| {
        format!(
            "cannot read {} (a bundle is a directory with config.json; husk spec writes one)",
            file.display()
        )
    })?;
    let look = |source: &Path| shm::look(Path::new("/"), source);
    let split = spec::split(&config, id, &path, &look)
        .with_context(|| format!("cannot run {}", path.display()))?;
    Ok(Bundle {
        path,
        host: split.host,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_configuration_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{\n  \"process\": 7\n}").unwrap();
        let error = format!("{:#}", read(dir.path(), "web").unwrap_err());
        assert!(error.contains("line 2 column"), "{error}");
    }

    #[test]
    fn missing_bundle_is_told_with_what_to_do() {
        let error = format!("{:#}", read(Path::new("/nowhere"), "web").unwrap_err());
        assert!(error.contains("/nowhere/config.json"), "{error}");
        assert!(error.contains("husk spec"), "{error}");
    }

    #[test]
    fn configuration_of_husk_spec_wants_a_terminal() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), super::super::spec::CONFIG).unwrap();
        assert!(read(dir.path(), "web").unwrap().host.terminal);
    }
}
