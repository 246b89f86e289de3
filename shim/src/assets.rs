//! The files a sandbox is made of: the VMM, the guest's kernel, the guest's initrd. Looked at before anything is started, so that a
//! missing or mixed-up one is told by its name.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::Config;

/// What a file should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asset {
    /// The `husk-vmm` executable.
    Vmm,
    /// An uncompressed ELF `vmlinux` for this architecture.
    Kernel,
    /// An uncompressed cpio archive, "newc".
    Initrd,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssetError {
    /// Missing, or not to be read.
    #[error("cannot read the {} {} ({})", asset.name(), path.display(), asset.remedy())]
    Read {
        /// What it should be.
        asset: Asset,
        /// The file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Something else.
    #[error("the {} {} is not {} ({})", asset.name(), path.display(), asset.form(), asset.remedy())]
    Form {
        /// What it should be.
        asset: Asset,
        /// The file.
        path: PathBuf,
    },
}

/// e_ident (class 64 bit, little endian), then after 8 bytes of padding and e_type the e_machine.
const ELF_IDENT: &[u8] = b"\x7fELF\x02\x01";
const ELF_MACHINE_OFFSET: usize = 18;
const ELF_MACHINE_X86_64: &[u8] = &[62, 0];
const CPIO_NEWC: &[u8] = b"070701";

/// As much of a file as is looked at.
const HEAD_BYTES: usize = 20;

impl Asset {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Vmm, Self::Kernel, Self::Initrd];

    /// Its key in the configuration file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
        }
    }

    /// Where it is.
    pub(crate) fn path(self, config: &Config) -> &Path {
        match self {
            Self::Vmm => &config.vmm,
            Self::Kernel => &config.kernel,
            Self::Initrd => &config.initrd,
        }
    }

    /// Ok when the file has the right form.
    pub(crate) fn check(self, config: &Config) -> Result<(), AssetError> {
        let path = self.path(config);
        let (head, executable) = head(path).map_err(|source| AssetError::Read {
            asset: self,
            path: path.to_owned(),
            source,
        })?;
        let elf = head.starts_with(ELF_IDENT)
            && head.get(ELF_MACHINE_OFFSET..) == Some(ELF_MACHINE_X86_64);
        let fits = match self {
            Self::Vmm => elf && executable,
            Self::Kernel => elf,
            Self::Initrd => head.starts_with(CPIO_NEWC),
        };
        if fits {
            Ok(())
        } else {
            Err(AssetError::Form {
                asset: self,
                path: path.to_owned(),
            })
        }
    }

    fn form(self) -> &'static str {
        match self {
            Self::Vmm => "an x86-64 executable",
            Self::Kernel => "an uncompressed x86-64 ELF vmlinux",
            Self::Initrd => "an uncompressed cpio archive",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Vmm => "install it beside husk, or set vmm in the configuration file",
            Self::Kernel => "install it beside husk, or set kernel in the configuration file",
            Self::Initrd => "install it beside husk, or set initrd in the configuration file",
        }
    }
}

/// Ok when all of them are there.
pub(crate) fn check(config: &Config) -> Result<(), AssetError> {
    Asset::ALL
        .into_iter()
        .try_for_each(|asset| asset.check(config))
}

/// The file's first bytes, and whether anybody may execute it.
fn head(path: &Path) -> io::Result<(Vec<u8>, bool)> {
    let file = File::open(path)?;
    let executable = file.metadata()?.permissions().mode() & 0o111 != 0;
    let mut head = Vec::new();
    file.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok((head, executable))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        Config {
            vmm: dir.join("vmm"),
            kernel: dir.join("vmlinux"),
            initrd: dir.join("initrd.cpio"),
            size: crate::spec::ConfiguredSize::default(),
            agent_timeout: std::time::Duration::from_secs(1),
        }
    }

    #[test]
    fn kernel_is_an_elf_of_this_architecture() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        assert!(matches!(
            Asset::Kernel.check(&config),
            Err(AssetError::Read { .. })
        ));
        let mut elf = [ELF_IDENT, &[0; 12], ELF_MACHINE_X86_64].concat();
        std::fs::write(&config.kernel, &elf).unwrap();
        assert!(Asset::Kernel.check(&config).is_ok());
        elf[ELF_MACHINE_OFFSET] = 183;
        std::fs::write(&config.kernel, &elf).unwrap();
        let error = Asset::Kernel.check(&config).unwrap_err().to_string();
        assert!(
            error.contains("is not an uncompressed x86-64 ELF"),
            "{error}"
        );
    }

    #[test]
    fn vmm_must_be_executable() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let elf = [ELF_IDENT, &[0; 12], ELF_MACHINE_X86_64].concat();
        std::fs::write(&config.vmm, elf).unwrap();
        assert!(Asset::Vmm.check(&config).is_err());
    }

    #[test]
    fn compressed_initrd_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        std::fs::write(&config.initrd, b"\x1f\x8b gzip").unwrap();
        assert!(Asset::Initrd.check(&config).is_err());
        std::fs::write(&config.initrd, b"070701 and more").unwrap();
        assert!(Asset::Initrd.check(&config).is_ok());
    }
}
