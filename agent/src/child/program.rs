//! The last steps before the program, and the program.
//!
//! The program is looked for as the user that will run it, before the agent is told that all is ready: what cannot be executed is an
//! error of the set-up. The seccomp filter comes last of all that it could forbid. Loading it needs `CAP_SYS_ADMIN` or
//! `no_new_privs`: with the latter it is loaded after the capabilities are gone, without it before.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, fstat, open, stat};
use rustix::io::Errno;

use super::hooks::Prepared;
use super::{Doing, StepError, errno_text, quoted, schedule, seccomp, user};
use crate::plan::Process;
use crate::report::{Failure, FailureKind};
use crate::signal;

/// A program that was found, with its arguments.
#[derive(Debug)]
pub(super) struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

/// As much of the image's user table as is read.
const PASSWD_MAX: u64 = 1 << 20;

/// Where programs are looked for when the environment does not say.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Becomes the user, enters the working directory and finds the program.
pub(super) fn prepare(process: &Process) -> Result<Program, Failure> {
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).doing(|| "cannot set no_new_privs".to_owned())?;
    }
    schedule::set_personality(&process.schedule)?;
    let home = home(process);
    user::bound(&process.capabilities)?;
    // Root may enter what the user may not, and the other way round on some network file systems.
    let entered = rustix::process::chdir(&process.cwd);
    user::assume(process)?;
    if entered.is_err() {
        rustix::process::chdir(&process.cwd)
            .doing(|| format!("cannot enter working directory {}", quoted(&process.cwd)))?;
    }
    check_cwd()?;
    rustix::process::umask(Mode::from_raw_mode(process.umask));
    // Now, as a filter may forbid it later.
    signal::default_all().doing(|| "cannot reset signals".to_owned())?;
    let path = find(
        &process.args[0],
        variable(&process.env, "PATH").unwrap_or(PATH_DEFAULT),
    )?;
    let mut env = process.env.clone();
    if variable(&env, "HOME").is_none_or(str::is_empty) {
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={home}"));
    }
    let strings = |given: &[String]| {
        given
            .iter()
            .map(|text| CString::new(text.as_str()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| nul())
    };
    Ok(Program {
        path: CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| nul())?,
        args: strings(&process.args)?,
        env: strings(&env)?,
    })
}

fn nul() -> Failure {
    Failure {
        kind: FailureKind::SetUp,
        message: "an argument or variable has a NUL byte".to_owned(),
    }
}

impl Program {
    /// Becomes the program.
    pub(super) fn run(
        &self,
        process: &Process,
        start_hooks: Option<Prepared<'_>>,
    ) -> Result<Infallible, Failure> {
        if process.no_new_privileges {
            user::drop_to(&process.capabilities)?;
            filter(process.seccomp.as_ref())?;
        } else {
            filter(process.seccomp.as_ref())?;
            user::drop_to(&process.capabilities)?;
        }
        if let Some(hooks) = start_hooks {
            hooks.run(&self.env)?;
        }
        match nix::unistd::execve(&self.path, &self.args, &self.env) {
            Ok(never) => Ok(never),
            Err(nix::errno::Errno::ENOENT) => {
                let message = format!(
                    "exec {:?}: the interpreter that it names does not exist",
                    process.args[0]
                );
                Err(Failure {
                    kind: FailureKind::NotFound,
                    message,
                })
            }
            Err(errno) => Err(not_executable(
                &process.args[0],
                &errno_text(super::StepErrno::from(errno).0),
            )),
        }
    }
}

fn filter(seccomp: Option<&LinuxSeccomp>) -> Result<(), Failure> {
    let Some(seccomp) = seccomp else {
        return Ok(());
    };
    seccomp::load(seccomp).map_err(|error| Failure {
        kind: FailureKind::SetUp,
        message: error.to_string(),
    })
}

/// The working directory must be inside the container: a descriptor left open could have led out.
fn check_cwd() -> Result<(), StepError> {
    let cwd = rustix::process::getcwd(Vec::new())
        .doing(|| "cannot tell the working directory".to_owned())?;
    if cwd.to_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Errno::PERM).doing(|| "the working directory is outside".to_owned())
    }
}

fn variable<'e>(env: &'e [String], name: &str) -> Option<&'e str> {
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// The user's home directory by the container's own table, the root where that does not say.
fn home(process: &Process) -> String {
    let mut table = Vec::new();
    let read = regular_file("/etc/passwd")
        .map_err(std::io::Error::from)
        .and_then(|file| file.take(PASSWD_MAX).read_to_end(&mut table));
    // A table that is missing or no file names nobody.
    if read.is_err() {
        table.clear();
    }
    home_in(&table, process.uid)
}

/// The home directory of a user by a table like `/etc/passwd` (pure). What it says of others need not be
/// text.
fn home_in(table: &[u8], uid: u32) -> String {
    let uid = uid.to_string();
    let table = String::from_utf8_lossy(table);
    let fields = table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let home = fields
        .filter(|fields| fields.get(2) == Some(&uid.as_str()))
        .find_map(|fields| fields.get(5).copied());
    home.filter(|home| home.starts_with('/'))
        .unwrap_or("/")
        .to_owned()
}

/// Opens a file of the image for reading. The image may have something else there, whose opening would wait for somebody.
fn regular_file(path: &str) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty())?;
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file.into()),
        _ => Err(Errno::INVAL),
    }
}

/// The file to execute: the name itself where it has a slash, else the first match on the search path.
fn find(name: &str, search: &str) -> Result<PathBuf, Failure> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Failure {
                kind: FailureKind::NotFound,
                message: format!("exec {name:?}: no such file or directory"),
            }),
            Err(errno) => Err(not_executable(name, &errno_text(errno))),
        };
    }
    let mut denied = false;
    for directory in search.split(':') {
        // An empty element is the working directory.
        let path = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(errno) => denied |= errno == Errno::ACCESS,
        }
    }
    if denied {
        return Err(not_executable(name, "permission denied"));
    }
    let message = format!("exec {name:?}: executable file not found in $PATH");
    Err(Failure {
        kind: FailureKind::NotFound,
        message,
    })
}

/// Whether this user may execute the file.
fn executable(path: &Path) -> Result<(), Errno> {
    if FileType::from_raw_mode(stat(path)?.st_mode).is_dir() {
        return Err(Errno::ISDIR);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

fn not_executable(name: &str, why: &str) -> Failure {
    Failure {
        kind: FailureKind::NotExecutable,
        message: format!("exec {name:?}: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory with a program, a file that is none, and a directory.
    fn place() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        for (name, mode) in [("program", 0o755), ("plain", 0o644)] {
            let path = place.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir(place.path().join("directory")).unwrap();
        place
    }

    #[test]
    fn a_home_is_found_in_a_table_that_is_not_all_text() {
        let table =
            b"root:x:0:0:root:/root:/bin/sh\nb:x:7:7:J\xfcrgen:/home/b:/bin/sh\nc:x:8:8::/c:\n";
        assert_eq!(home_in(table, 7), "/home/b");
        assert_eq!(home_in(table, 8), "/c");
        assert_eq!(home_in(table, 9), "/");
        assert_eq!(home_in(b"a:x:7:7::relative:", 7), "/");
    }

    #[test]
    fn a_name_is_looked_for_on_the_search_path() {
        let place = place();
        let search = format!("/nowhere:{}", place.path().display());
        assert_eq!(
            find("program", &search).unwrap(),
            place.path().join("program")
        );
        let missing = find("missing", &search).unwrap_err();
        assert_eq!(missing.kind, FailureKind::NotFound);
        assert_eq!(
            missing.message,
            "exec \"missing\": executable file not found in $PATH"
        );
        assert_eq!(
            find("plain", &search).unwrap_err().kind,
            FailureKind::NotExecutable
        );
        assert_eq!(
            find("directory", &search).unwrap_err().kind,
            FailureKind::NotFound
        );
    }

    #[test]
    fn a_name_with_a_slash_is_a_path() {
        let place = place();
        let path = |name: &str| place.path().join(name).display().to_string();
        assert_eq!(
            find(&path("program"), "").unwrap(),
            place.path().join("program")
        );
        assert_eq!(
            find(&path("missing"), "").unwrap_err().kind,
            FailureKind::NotFound
        );
        assert_eq!(
            find(&path("plain/x"), "").unwrap_err().kind,
            FailureKind::NotFound
        );
        assert_eq!(
            find(&path("directory"), "").unwrap_err().kind,
            FailureKind::NotExecutable
        );
    }

    #[test]
    fn the_last_of_two_variables_counts() {
        let env = [
            "PATH=/a".to_owned(),
            "PATHS=/b".to_owned(),
            "PATH=/c=d".to_owned(),
        ];
        assert_eq!(variable(&env, "PATH"), Some("/c=d"));
        assert_eq!(variable(&env, "HOME"), None);
    }
}
