//! `husk spec`: write a configuration that runs as it is, with a root file system beside it.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};

use super::Failure;

/// A shell on the user's terminal, in `rootfs`, with the usual confinement.
pub(super) const CONFIG: &str = include_str!("config.json");

/// Write a config.json that runs a shell in the bundle's rootfs
#[derive(Debug, clap::Args)]
pub(super) struct SpecArgs {
    /// The bundle's directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Not there: husk's VMs are root's
    #[arg(long)]
    rootless: bool,
}

/// Writes it; a file that is there is left alone.
pub(super) fn run(args: &SpecArgs) -> Result<ExitCode, Failure> {
    if args.rootless {
        return Err(anyhow!(
            "--rootless: husk is run by root, and the guest's root is not the host's"
        )
        .into());
    }
    let path = args.bundle.join("config.json");
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(anyhow!("{} exists already; remove it first", path.display()).into());
        }
        Err(error) => {
            return Err(anyhow!(error)
                .context(format!("cannot write {}", path.display()))
                .into());
        }
    };
    file.write_all(CONFIG.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_configuration_is_of_our_version_and_complete() {
        let spec: oci_spec::runtime::Spec = serde_json::from_str(CONFIG).unwrap();
        assert_eq!(spec.version(), crate::spec::VERSION);
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["sh"]);
        assert_eq!(process.terminal(), Some(true));
        assert_eq!(spec.mounts().as_ref().unwrap().len(), 7);
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 6);
    }

    #[test]
    fn existing_configuration_is_kept() {
        let bundle = tempfile::tempdir().unwrap();
        let args = SpecArgs {
            bundle: bundle.path().to_owned(),
            rootless: false,
        };
        run(&args).unwrap();
        let path = bundle.path().join("config.json");
        std::fs::write(&path, "mine").unwrap();
        assert!(run(&args).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
