//! The network namespace of a sandbox: the one that the bundle names, or a new one, in which nothing is.
//!
//! The VMM is in a named one, and so is the thread that stands for the container, since engines look for a container's network by either; the
//! supervisor itself stays where it was started. Guests have loopback only. What an engine, a hook or a plugin has set up in the namespace would never reach the container: an interface with
//! a network is refused, at create and at start. One that has none yet is not: some kernels put unused tunnels into every namespace.
//! Ways to fail: it is no namespace, it is the host's, or it has such an interface.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::CloneFlags;
use oci_spec::runtime::LinuxNamespaceType;

use crate::spec::{Shared, SpecError};

/// The interface that every namespace has.
const LOOPBACK: &[u8] = b"lo";

/// That of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// What is to be done about a network that a guest does not have.
const REMEDY: &str = "a guest has no network but loopback; use a network of the kind none";

/// A network namespace that the bundle names.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// The one at `path`: not this process's own, and without a network.
    pub(crate) fn open(path: &Path) -> Result<Self, SpecError> {
        let failed = |source| unreadable(path, source);
        let namespace = Self(File::open(path).map_err(failed)?);
        let metadata = namespace.0.metadata().map_err(failed)?;
        if (metadata.dev(), metadata.ino()) == identity(Path::new(OWN))? {
            return Err(SpecError::Refused {
                what: "the host's network namespace".to_owned(),
                why: REMEDY,
            });
        }
        let net = Path::new("/proc/thread-self/net");
        namespace
            .within(|| refuse_networks(net))
            .map_err(failed)
            .flatten()?;
        Ok(namespace)
    }

    /// Moves the calling thread into it.
    pub(crate) fn enter(&self) -> io::Result<()> {
        Ok(nix::sched::setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }

    /// Does `work` in it, on a thread of its own: this one stays where it is.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let thread =
                thread::Builder::new()
                    .name("network".into())
                    .spawn_scoped(scope, || {
                        self.enter()?;
                        Ok(work())
                    })?;
            thread
                .join()
                .map_err(|_| io::Error::other("the thread in the network has panicked"))?
        })
    }
}

/// Refuses a network in the namespace of the process `pid`.
pub(crate) fn check(pid: i32) -> Result<(), SpecError> {
    refuse_networks(Path::new(&format!("/proc/{pid}/net")))
}

fn refuse_networks(net: &Path) -> Result<(), SpecError> {
    let read = |name: &str| {
        let path = net.join(name);
        match fs::read(&path) {
            // A kernel without IPv6, or without IPv4.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            text => text.map_err(|source| unreadable(&path, source)),
        }
    };
    let (routes, addresses) = (read("route")?, read("if_inet6")?);
    match interfaces(&routes, &addresses).first() {
        None => Ok(()),
        Some(name) => Err(SpecError::Refused {
            what: format!(
                "the network interface {} of the container",
                name.escape_ascii()
            ),
            why: REMEDY,
        }),
    }
}

/// Whether `shared` is a namespace of the container that the process `pid` stands for. Of these, that
/// process itself is in the network's only.
pub(crate) fn is_of_container(shared: &Shared, pid: i32) -> bool {
    shared.pid() == Some(pid)
        || shared.kind == LinuxNamespaceType::Network && is_that_of(&shared.path, pid)
}

/// Whether the namespace at `path` is that of the process `pid`, and not this thread's own, in which every
/// process begins that will stand for a container.
fn is_that_of(path: &Path, pid: i32) -> bool {
    let of_process = PathBuf::from(format!("/proc/{pid}/ns/net"));
    identity(path).is_ok_and(|one| {
        identity(&of_process).is_ok_and(|other| one == other)
            && identity(Path::new(OWN)).is_ok_and(|own| one != own)
    })
}

fn identity(namespace: &Path) -> Result<(u64, u64), SpecError> {
    let metadata = fs::metadata(namespace).map_err(|source| unreadable(namespace, source))?;
    Ok((metadata.dev(), metadata.ino()))
}

fn unreadable(path: &Path, source: io::Error) -> SpecError {
    SpecError::Read {
        path: path.to_owned(),
        source,
    }
}

/// The interfaces with a network, by a `/proc/net/route` and a `/proc/net/if_inet6` (pure). A name has
/// any bytes but white space of ASCII's, a colon and a slash: it need not be text.
fn interfaces<'a>(routes: &'a [u8], addresses: &'a [u8]) -> BTreeSet<&'a [u8]> {
    let version_4 = lines(routes).skip(1);
    let version_6 = lines(addresses);
    version_4
        .filter_map(|line| words(line).next())
        .chain(version_6.filter_map(|line| words(line).nth(5)))
        .filter(|name| *name != LOOPBACK)
        .collect()
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
}

/// An interface is found under any name that the kernel takes, and nothing is found that the tables do
/// not have.
#[cfg(fuzzing)]
pub(crate) fn read_tables(bytes: &[u8]) {
    for name in interfaces(bytes, bytes) {
        assert!(!name.is_empty() && name != LOOPBACK);
        assert!(bytes.windows(name.len()).any(|part| part == name));
    }
    // dev_valid_name() of Linux, where white space is that of Latin-1.
    let allowed = |byte: &u8| !matches!(byte, 0 | b'\t'..=b'\r' | b' ' | 0xa0 | b'/' | b':');
    let name: Vec<u8> = bytes.iter().copied().filter(allowed).take(15).collect();
    let route = [
        b"Iface\tDestination\n",
        &name[..],
        b"\t00000000\t0101A8C0\n",
    ]
    .concat();
    let address = [b"fe800000 02 40 20 80 ", &name[..], b"\n"].concat();
    let wanted = !name.is_empty() && name != LOOPBACK;
    for (routes, addresses) in [(&route[..], &b""[..]), (b"", &address)] {
        let found = interfaces(routes, addresses);
        assert_eq!(found.contains(&name[..]), wanted, "{}", name.escape_ascii());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &[u8] = b"Iface\tDestination\tGateway \tFlags\neth0\t00000000\t0101A8C0\t0003\n";
    const ADDRESSES: &[u8] = b"00000000000000000000000000000001 01 80 10 80       lo\n\
        fe80000000000000505400fffe123456 02 40 20 80     net1\n";

    #[test]
    fn interfaces_with_a_network_are_found_but_loopback() {
        let found: Vec<_> = interfaces(ROUTES, ADDRESSES).into_iter().collect();
        assert_eq!(found, [&b"eth0"[..], b"net1"]);
        let header = lines(ROUTES).next().unwrap();
        assert!(interfaces(header, lines(ADDRESSES).next().unwrap()).is_empty());
        assert!(interfaces(b"", b"").is_empty());
    }

    #[test]
    fn a_name_that_begins_as_loopbacks_does_is_no_loopback() {
        // Spaces that are none to the kernel, and bytes that are no text.
        for name in [&b"lo\xc2\x85x"[..], b"lo\xe2\x80\x83", b"lo\xff", b"lo0"] {
            let routes = [b"Iface\n", name, b"\t00000000\n"].concat();
            let found: Vec<_> = interfaces(&routes, b"").into_iter().collect();
            assert_eq!(found, [name]);
        }
    }

    #[test]
    fn missing_namespace_is_named() {
        let error = Namespace::open(Path::new("/nowhere/net")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/net");
    }

    #[test]
    fn this_processs_own_namespace_is_refused_each_time() {
        for _ in 0..2 {
            let error = Namespace::open(Path::new("/proc/self/ns/net")).unwrap_err();
            assert!(
                error.to_string().starts_with("the host's network"),
                "{error}"
            );
        }
    }
}
