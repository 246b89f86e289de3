//! What `run` and `create` look at before anything is started: the id, the bundle, the installed files, the right to use KVM. So a mistake of the
//! user's costs no VM and leaves nothing behind.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use crate::assets;
use crate::config::{Config, Options};
use crate::kvm;
use crate::spec;
use crate::state::check_id;

/// A bundle that can be run here, as far as can be told.
#[derive(Debug)]
pub(super) struct Bundle {
    /// Absolute.
    pub(super) path: PathBuf,
    /// Whether its process is to have a terminal.
    pub(super) terminal: bool,
}

/// Looks at the bundle in `dir`, to be run as `id`.
pub(super) fn inspect(options: &Options, dir: &Path, id: &str) -> anyhow::Result<Bundle> {
    check_id(id)?;
    let bundle = read(dir, id)?;
    if !rustix::process::geteuid().is_root() {
        return Err(anyhow!(
            "husk mounts file systems and makes cgroups: run it as root"
        ));
    }
    assets::check(&Config::load(options)?)?;
    kvm::access()?;
    Ok(bundle)
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
    let split =
        spec::split(&config, id).with_context(|| format!("cannot run {}", path.display()))?;
    Ok(Bundle {
        path,
        terminal: split.host.terminal,
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
        assert!(read(dir.path(), "web").unwrap().terminal);
    }
}
