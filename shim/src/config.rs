//! What husk is told by its user: [`Options`], the part of the command line that every verb shares, and [`Config`], the
//! configuration file.
//!
//! A supervisor is started with the same options as the command that starts it ([`Options::to_args`]), so both see the same
//! root, configuration and log. Without a file every setting has a default; assets are then found relative to the executable:
//!
//! ```text
//!   PREFIX/bin/husk   PREFIX/libexec/husk/husk-vmm   PREFIX/share/husk/{vmlinux,initrd.cpio}
//! ```
//!
//! Ways to fail: the file named by `--config` is missing, is not TOML, or has a key that husk does not know (the error names it).

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;

use crate::spec::ConfiguredSize;

/// The configuration file that is read when `--config` names no other; it need not exist.
const CONFIG_FILE: &str = "/etc/husk/config.toml";

/// The directory of the state of containers, made with the first of them.
const ROOT: &str = "/run/husk";

/// The options that every verb takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Directory of the state of all containers
    #[arg(long, global = true, value_name = "DIR", default_value = ROOT)]
    pub(crate) root: PathBuf,
    /// Configuration file [default: /etc/husk/config.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Append a log to FILE
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Format of that log
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub(crate) log_format: LogFormat,
    /// Log what is done, step by step
    #[arg(long, global = true)]
    pub(crate) debug: bool,
    /// Taken as given: a cgroupsPath of the form slice:prefix:name is understood without it
    #[arg(long, global = true, hide = true)]
    systemd_cgroup: bool,
    /// Whether to do without root: false or auto, which is false
    #[arg(long, hide = true, value_name = "WHETHER", value_parser = rootful)]
    rootless: Option<()>,
    /// Where criu is, which is not used
    #[arg(long, global = true, hide = true, value_name = "PATH")]
    criu: Option<PathBuf>,
}

fn rootful(text: &str) -> Result<(), String> {
    match text {
        "false" | "auto" => Ok(()),
        _ => Err("husk is run by root: false and auto are possible".into()),
    }
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Words: time="..." level=... msg="..."
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

impl Options {
    /// Whether the state is where nobody has chosen it to be.
    pub(crate) fn has_default_root(&self) -> bool {
        self.root == Path::new(ROOT)
    }

    /// The command line words that give another husk the same options. Paths are made absolute, since that process may run elsewhere.
    pub(crate) fn to_args(&self) -> io::Result<Vec<OsString>> {
        let mut args = vec!["--root".into(), absolute(&self.root)?];
        if let Some(config) = &self.config {
            args.extend(["--config".into(), absolute(config)?]);
        }
        if let Some(log) = &self.log {
            args.extend(["--log".into(), absolute(log)?]);
        }
        if self.log_format == LogFormat::Json {
            args.extend(["--log-format".into(), "json".into()]);
        }
        if self.debug {
            args.push("--debug".into());
        }
        Ok(args)
    }
}

fn absolute(path: &Path) -> io::Result<OsString> {
    Ok(std::path::absolute(path)?.into_os_string())
}

/// The settings, as the file has them or by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The `husk-vmm` executable.
    pub(crate) vmm: PathBuf,
    /// The guest's kernel, an uncompressed ELF `vmlinux`.
    pub(crate) kernel: PathBuf,
    /// The guest's initrd, an uncompressed cpio archive with the agent as `/init`.
    pub(crate) initrd: PathBuf,
    /// Memory and vCPUs of a guest.
    pub(crate) size: ConfiguredSize,
    /// How long a guest may take from power-on to the agent's call.
    pub(crate) agent_timeout: Duration,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot find out where the husk executable is")]
    Executable(#[source] io::Error),
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the configuration file {} is wrong", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: basic_toml::Error,
    },
    #[error("the configuration file {}: {key} must be at least {least}", path.display())]
    TooSmall {
        path: PathBuf,
        key: &'static str,
        least: u32,
    },
}

/// The file: every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    vmm: Option<PathBuf>,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    memory_mib: Option<u32>,
    memory_max_mib: Option<u32>,
    vcpus: Option<u8>,
    vcpus_max: Option<u8>,
    agent_timeout_s: Option<u32>,
}

/// Below this no guest of ours boots.
const MEMORY_LEAST_MIB: u32 = 64;

impl Config {
    /// Reads the configuration file, the one of `--config` or the usual one.
    pub(crate) fn load(options: &Options) -> Result<Self, ConfigError> {
        let executable = std::env::current_exe().map_err(ConfigError::Executable)?;
        let path = options.config.as_deref().unwrap_or(Path::new(CONFIG_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(source) if source.kind() == io::ErrorKind::NotFound && options.config.is_none() => {
                String::new()
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Self::parse(&text, path, &executable)
    }

    /// `text` is the file's content, `path` its name for messages; `executable` is what assets are relative to.
    fn parse(text: &str, path: &Path, executable: &Path) -> Result<Self, ConfigError> {
        let file: File = basic_toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })?;
        let too_small = |key, least| ConfigError::TooSmall {
            path: path.to_owned(),
            key,
            least,
        };
        let size = ConfiguredSize {
            memory_mib: file.memory_mib.unwrap_or(512),
            memory_max_mib: file.memory_max_mib,
            vcpus: file.vcpus.unwrap_or(1),
            vcpus_max: file.vcpus_max,
        };
        if size.memory_mib < MEMORY_LEAST_MIB {
            return Err(too_small("memory_mib", MEMORY_LEAST_MIB));
        }
        if size
            .memory_max_mib
            .is_some_and(|most| most < size.memory_mib)
        {
            return Err(too_small("memory_max_mib", size.memory_mib));
        }
        if size.vcpus == 0 {
            return Err(too_small("vcpus", 1));
        }
        if size.vcpus_max.is_some_and(|most| most < size.vcpus) {
            return Err(too_small("vcpus_max", size.vcpus.into()));
        }
        let agent_timeout_s = file.agent_timeout_s.unwrap_or(60);
        if agent_timeout_s == 0 {
            return Err(too_small("agent_timeout_s", 1));
        }
        let prefix = prefix_of(executable);
        Ok(Self {
            vmm: file
                .vmm
                .unwrap_or_else(|| prefix.join("libexec/husk/husk-vmm")),
            kernel: file
                .kernel
                .unwrap_or_else(|| prefix.join("share/husk/vmlinux")),
            initrd: file
                .initrd
                .unwrap_or_else(|| prefix.join("share/husk/initrd.cpio")),
            size,
            agent_timeout: Duration::from_secs(agent_timeout_s.into()),
        })
    }
}

/// The prefix that an executable in `PREFIX/bin` was installed under.
fn prefix_of(executable: &Path) -> &Path {
    executable
        .parent()
        .and_then(Path::parent)
        .unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(
            text,
            Path::new("husk.toml"),
            Path::new("/usr/local/bin/husk"),
        )
    }

    #[test]
    fn empty_file_gives_defaults_relative_to_executable() {
        let config = parse("").unwrap();
        assert_eq!(config.vmm, Path::new("/usr/local/libexec/husk/husk-vmm"));
        assert_eq!(config.kernel, Path::new("/usr/local/share/husk/vmlinux"));
        assert_eq!(
            config.initrd,
            Path::new("/usr/local/share/husk/initrd.cpio")
        );
        assert_eq!((config.size.memory_mib, config.size.vcpus), (512, 1));
        assert_eq!(
            (config.size.memory_max_mib, config.size.vcpus_max),
            (None, None)
        );
        assert_eq!(config.agent_timeout, Duration::from_secs(60));
    }

    #[test]
    fn settings_of_the_file_win() {
        let config = parse(
            "kernel = \"/k\"\nmemory_mib = 128\nmemory_max_mib = 256\nvcpus = 4\nvcpus_max = 8\n",
        )
        .unwrap();
        assert_eq!(config.kernel, Path::new("/k"));
        let size = ConfiguredSize {
            memory_mib: 128,
            memory_max_mib: Some(256),
            vcpus: 4,
            vcpus_max: Some(8),
        };
        assert_eq!(config.size, size);
    }

    #[test]
    fn unknown_key_is_named() {
        let error = parse("memroy_mib = 1").unwrap_err();
        let source = std::error::Error::source(&error).unwrap();
        assert!(source.to_string().contains("memroy_mib"), "{source}");
    }

    #[test]
    fn senseless_number_is_named() {
        let error = parse("vcpus = 0").unwrap_err().to_string();
        assert!(error.contains("vcpus must be at least 1"), "{error}");
    }

    #[test]
    fn options_are_passed_on_with_absolute_paths() {
        let options = Options {
            root: "state".into(),
            config: None,
            log: Some("/tmp/l".into()),
            log_format: LogFormat::Json,
            debug: true,
            systemd_cgroup: true,
            rootless: None,
            criu: None,
        };
        let args = options.to_args().unwrap();
        assert!(Path::new(&args[1]).is_absolute());
        assert_eq!(
            args[2..],
            ["--log", "/tmp/l", "--log-format", "json", "--debug"]
        );
    }
}
