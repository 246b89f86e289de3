//! A file server in the jail, with its filter: it changes nothing above the mounts of containers,
//! whoever asks, and can do all else.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use husk_vmm::{host, jail, seccomp, violation};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};
use rustix::io::Errno;
use vmm_api::Jail;

use super::fuse::{Client, ROOT, longs, named, operation as op, u64_at, words};
use super::{Supervisor, alone};

/// Runs `guest` on a thread that is in the jail of `supervisor` and has the filter of the one that
/// makes workers; `host` is what the supervisor does once the jail is entered.
fn serve(
    supervisor: &Supervisor,
    host: impl FnOnce(),
    guest: impl FnOnce(Client) + Send + 'static,
) {
    let share = supervisor.share();
    let (entered, entry) = mpsc::channel();
    let (prepared, preparation) = mpsc::channel();
    let descriptors = host::own_descriptors().unwrap();
    // Tells which call it was, should a filter stop one.
    violation::install().unwrap();
    let jailed = thread::spawn(move || {
        jail::enter(Jail::default(), Some(&share)).unwrap();
        entered.send(()).unwrap();
        preparation.recv().unwrap();
        seccomp::load("devices").unwrap();
        guest(Client::new(descriptors));
    });
    entry.recv().unwrap();
    host();
    prepared.send(()).unwrap();
    jailed.join().unwrap();
}

/// What a look at a directory of the supervisor's shows.
fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn taken_over_it_writes_below_mounts_only() {
    alone(
        "jail::files::taken_over_it_writes_below_mounts_only",
        || {
            let supervisor = Supervisor::new();
            let share = supervisor.share();
            let (entered, entry) = mpsc::channel();
            let (mounted, mount) = mpsc::channel();
            let jailed = thread::spawn(move || {
                jail::enter(Jail::default(), Some(&share)).unwrap();
                entered.send(()).unwrap();
                mount.recv().unwrap();
                let errno =
                    |result: std::io::Result<()>| result.err().and_then(|e| e.raw_os_error());
                for level in ["/", "/c", "/c/mounts"] {
                    let new = Path::new(level).join("new");
                    assert_eq!(errno(fs::create_dir(&new)), Some(libc::EROFS), "{level}");
                    assert_eq!(errno(fs::write(&new, "")), Some(libc::EROFS), "{level}");
                    let link = std::os::unix::fs::symlink("/etc", &new);
                    assert_eq!(errno(link), Some(libc::EROFS), "{level}");
                    let mode = fs::Permissions::from_mode(0o777);
                    assert_eq!(
                        errno(fs::set_permissions(level, mode)),
                        Some(libc::EROFS),
                        "{level}"
                    );
                }
                for (from, to) in [("/c", "/d"), ("/c/mounts/0", "/c/mounts/2")] {
                    assert!(matches!(
                        errno(fs::rename(from, to)),
                        Some(libc::EROFS | libc::EBUSY)
                    ));
                }
                assert_eq!(errno(fs::write("/c/mounts/1", "x")), Some(libc::EROFS));
                assert_eq!(errno(fs::remove_file("/c/mounts/1")), Some(libc::EROFS));
                // What was there when the jail was entered, and what came later.
                fs::write("/c/rootfs/new", "").unwrap();
                fs::write("/c/mounts/0/new", "").unwrap();
            });
            entry.recv().unwrap();
            supervisor.mount_volume();
            mounted.send(()).unwrap();
            jailed.join().unwrap();
            // The supervisor goes on writing.
            fs::create_dir(supervisor.share().join("d")).unwrap();
            assert_eq!(names(&supervisor.rootfs()), ["new"]);
            assert_eq!(names(&supervisor.volume()), ["new"]);
            assert_eq!(names(&supervisor.share()), ["c", "d"]);
        },
    );
}

#[test]
fn device_nodes_are_made_and_not_opened() {
    alone("jail::files::device_nodes_are_made_and_not_opened", || {
        let supervisor = Supervisor::new();
        // Both devices there are on every host: /dev/null and /dev/zero; a block device is refused
        // before anybody looks for it.
        let kinds = [
            ("null", FileType::CharacterDevice, (1, 3)),
            ("zero", FileType::CharacterDevice, (1, 5)),
            ("disk", FileType::BlockDevice, (8, 0)),
        ];
        super::in_jail(Some(&supervisor.share()), move || {
            for (name, kind, (major, minor)) in kinds {
                let path = format!("/c/rootfs/{name}");
                let device = rustix::fs::makedev(major, minor);
                mknodat(CWD, &path, kind, Mode::RUSR | Mode::WUSR, device).unwrap();
                for flags in [OFlags::RDONLY, OFlags::RDWR] {
                    let opened = openat(CWD, &path, flags, Mode::empty());
                    assert_eq!(opened.err(), Some(Errno::ACCESS), "{name}");
                }
            }
        });
        for (name, _, device) in kinds {
            let metadata = fs::metadata(supervisor.rootfs().join(name)).unwrap();
            let found = metadata.rdev();
            assert_eq!((rustix::fs::major(found), rustix::fs::minor(found)), device);
        }
    });
}

#[test]
fn guest_changes_nothing_above_mounts() {
    alone("jail::files::guest_changes_nothing_above_mounts", || {
        let supervisor = Supervisor::new();
        fs::write(supervisor.rootfs().join("file"), "").unwrap();
        let volume = || supervisor.mount_volume();
        serve(&supervisor, volume, |mut client| {
            let container = client.walk("c");
            let mounts = client.walk("c/mounts");
            let placeholder = client.walk("c/mounts/1");
            for level in [ROOT, container, mounts, placeholder] {
                let changes = [
                    ("mkdir", op::MKDIR, named(&words(&[0o755, 0]), "new")),
                    (
                        "mknod",
                        op::MKNOD,
                        named(&words(&[libc::S_IFREG | 0o644, 0, 0, 0]), "new"),
                    ),
                    ("symlink", op::SYMLINK, named(&named(&[], "new"), "/etc")),
                    (
                        "create",
                        op::CREATE,
                        named(&words(&[2, 0o644, 0, 0]), "new"),
                    ),
                    ("unlink", op::UNLINK, named(&[], "0")),
                    ("rmdir", op::RMDIR, named(&[], "c")),
                    (
                        "rename",
                        op::RENAME,
                        named(&named(&longs(&[level]), "c"), "d"),
                    ),
                    ("open", op::OPEN, words(&[2, 0])),
                    (
                        "setxattr",
                        op::SETXATTR,
                        [words(&[1, 0, 0, 0]), b"user.a\0v".to_vec()].concat(),
                    ),
                    ("removexattr", op::REMOVEXATTR, named(&[], "user.a")),
                    ("setattr", op::SETATTR, setattr(1, 0o777)),
                ];
                let errors = client.errors(level, &changes);
                assert_eq!(errors.len(), changes.len());
                assert!(
                    errors.values().all(|error| *error == libc::EROFS),
                    "{errors:?}"
                );
            }
            // A file of the root file system is neither linked nor moved there.
            let rootfs = client.walk("c/rootfs");
            let file = client.walk("c/rootfs/file");
            let link = client.ask(op::LINK, container, &named(&longs(&[file]), "file"));
            assert_eq!(link, Err(libc::EROFS));
            let body = named(&named(&longs(&[mounts]), "file"), "2");
            assert_eq!(client.ask(op::RENAME, rootfs, &body), Err(libc::EROFS));
            // A mount that was made after the jail was entered is the guest's.
            let volume = client.walk("c/mounts/0");
            client.create(volume, "made").unwrap();
            client.create(rootfs, "made").unwrap();
        });
        assert_eq!(names(&supervisor.rootfs()), ["file", "made"]);
        assert_eq!(names(&supervisor.volume()), ["made"]);
        assert_eq!(names(&supervisor.share()), ["c"]);
    });
}

#[test]
fn volume_that_is_a_file_is_the_guests_to_write() {
    alone(
        "jail::files::volume_that_is_a_file_is_the_guests_to_write",
        || {
            let supervisor = Supervisor::new();
            let source = supervisor.volume().join("file");
            fs::write(&source, "before").unwrap();
            let mounted = || {
                let place = supervisor.share().join("c/mounts/1");
                rustix::mount::mount_bind(&source, place).unwrap();
            };
            serve(&supervisor, mounted, |mut client| {
                let file = client.walk("c/mounts/1");
                let opened = client.ask(op::OPEN, file, &words(&[2, 0])).unwrap();
                let body = [
                    longs(&[u64_at(&opened, 0), 0]),
                    words(&[5, 0]),
                    longs(&[0, 0]),
                    b"after".to_vec(),
                ];
                client.ask(op::WRITE, file, &body.concat()).unwrap();
            });
            assert_eq!(fs::read(&source).unwrap(), b"aftere");
        },
    );
}

/// A SETATTR of `valid`, with this mode, user and group 7, and the times and the size 0.
fn setattr(valid: u32, mode: u32) -> Vec<u8> {
    let mut body = words(&[valid, 0]);
    body.extend(longs(&[0, 0, 0, 0, 0, 0]));
    body.extend(words(&[0, 0, 0, mode, 0, 7, 7, 0]));
    body
}

#[test]
fn every_operation_works_under_the_filter() {
    alone(
        "jail::files::every_operation_works_under_the_filter",
        || {
            let supervisor = Supervisor::new();
            serve(
                &supervisor,
                || supervisor.mount_volume(),
                |mut client| {
                    let volume = client.walk("c/mounts/0");
                    locks(&mut client, volume);
                    let rootfs = client.walk("c/rootfs");
                    whole_files(&mut client, rootfs);
                    unnamed_files(&mut client, rootfs);
                    entries(&mut client, rootfs);
                    attributes(&mut client, rootfs);
                    client.act_as(1000);
                    let made =
                        client.ask(op::MKDIR, rootfs, &named(&words(&[0o755, 0]), "of a user"));
                    assert_eq!(made.err(), Some(libc::EACCES));
                    client.act_as(0);
                    client.tell(op::FORGET, rootfs, &longs(&[1]));
                    let batch = [words(&[1, 0]), longs(&[rootfs, 1])].concat();
                    client.tell(op::BATCH_FORGET, 0, &batch);
                    assert!(client.is_alive());
                    client.tell(op::DESTROY, 0, &[]);
                },
            );
            let kind = |name: &str| {
                fs::symlink_metadata(supervisor.rootfs().join(name))
                    .unwrap()
                    .file_type()
            };
            assert!(
                kind("fifo").is_fifo()
                    && kind("node").is_block_device()
                    && kind("socket").is_socket()
            );
        },
    );
}

/// Fails for any operation that fails.
fn all(client: &mut Client, inode: u64, operations: &[(&'static str, u32, Vec<u8>)]) {
    let errors = client.errors(inode, operations);
    assert!(errors.is_empty(), "{errors:?}");
}

/// What is asked of a file that is open, with a name or without one, up to its release.
fn of_an_open_file(client: &mut Client, file: u64, handle: u64) {
    all(
        client,
        file,
        &[
            (
                "fsync",
                op::FSYNC,
                [longs(&[handle]), words(&[0, 0])].concat(),
            ),
            (
                "fallocate",
                op::FALLOCATE,
                [longs(&[handle, 0, 8192]), words(&[0, 0])].concat(),
            ),
            (
                "lseek",
                op::LSEEK,
                [longs(&[handle, 0]), words(&[3, 0])].concat(),
            ),
            (
                "copy_file_range",
                op::COPY_FILE_RANGE,
                longs(&[handle, 0, file, handle, 4096, 4, 0]),
            ),
            ("truncate", op::SETATTR, setattr(1 << 3, 0)),
            (
                "release",
                op::RELEASE,
                [longs(&[handle]), words(&[0, 0]), longs(&[0])].concat(),
            ),
        ],
    );
}

fn whole_files(client: &mut Client, rootfs: u64) {
    let (file, handle) = client.create(rootfs, "a").unwrap();
    let write = |flags| {
        [
            longs(&[handle, 0]),
            words(&[4, flags]),
            longs(&[0, 0]),
            b"text".to_vec(),
        ]
        .concat()
    };
    let read = [longs(&[handle, 0]), words(&[4, 0]), longs(&[0, 0])].concat();
    const WRITE_KILL_PRIV: u32 = 1 << 2;
    all(
        client,
        file,
        &[
            ("write", op::WRITE, write(0)),
            (
                "write that clears set-id bits",
                op::WRITE,
                write(WRITE_KILL_PRIV),
            ),
            ("read", op::READ, read),
            ("flush", op::FLUSH, longs(&[handle, 0, 0])),
            (
                "fdatasync",
                op::FSYNC,
                [longs(&[handle]), words(&[1, 0])].concat(),
            ),
        ],
    );
    of_an_open_file(client, file, handle);
    let direct = libc::O_RDONLY.cast_unsigned();
    let opened = client.ask(op::OPEN, file, &words(&[direct, 0])).unwrap();
    let handle = u64_at(&opened, 0);
    let release = [longs(&[handle]), words(&[0, 0]), longs(&[0])].concat();
    all(client, file, &[("release", op::RELEASE, release)]);
}

/// What the guest does to lock a file that others have too.
fn locks(client: &mut Client, volume: u64) {
    let (file, handle) = client.create(volume, "locked").unwrap();
    let lock = |kind, whole_file| {
        let range = longs(&[0, 9]);
        [longs(&[handle, 1]), range, words(&[kind, 1, whole_file, 0])].concat()
    };
    let mut all_ways = Vec::new();
    for kind in [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK] {
        let kind = kind.cast_unsigned();
        all_ways.push(("record lock", op::SETLKW, lock(kind, 0)));
        all_ways.push(("lock of a file", op::SETLK, lock(kind, 1)));
    }
    all_ways.push(("who has it", op::GETLK, lock(0, 0)));
    all(client, file, &all_ways);
}

fn unnamed_files(client: &mut Client, rootfs: u64) {
    let flags = (libc::O_TMPFILE | libc::O_RDWR).cast_unsigned();
    let body = named(&words(&[flags, 0o100_640, 0, 0]), "/");
    let made = client.ask(op::TMPFILE, rootfs, &body).unwrap();
    // An inode, 128 bytes, and a handle.
    let (file, handle) = (u64_at(&made, 0), u64_at(&made, 128));
    let write = [longs(&[handle, 0]), words(&[4, 0]), longs(&[0, 0])].concat();
    let reopen = libc::O_RDONLY.cast_unsigned();
    all(
        client,
        file,
        &[
            ("getattr", op::GETATTR, longs(&[0, 0])),
            (
                "write",
                op::WRITE,
                [write.clone(), b"text".to_vec()].concat(),
            ),
            ("read", op::READ, write),
            ("open", op::OPEN, words(&[reopen, 0])),
            ("chmod", op::SETATTR, setattr(1, 0o600)),
            ("chown", op::SETATTR, setattr(1 << 1, 0)),
            ("times", op::SETATTR, setattr(1 << 5, 0)),
            ("statfs", op::STATFS, Vec::new()),
            ("listxattr", op::LISTXATTR, words(&[100, 0])),
        ],
    );
    of_an_open_file(client, file, handle);
    let linked = client.ask(op::LINK, rootfs, &named(&longs(&[file]), "unnamed once"));
    assert!(linked.is_ok(), "{linked:?}");
    client.tell(op::FORGET, file, &longs(&[1]));
}

fn entries(client: &mut Client, rootfs: u64) {
    let mknod = |kind: u32, device: u32, name| named(&words(&[kind | 0o644, device, 0, 0]), name);
    let file = client.lookup(rootfs, "a").unwrap();
    let rename = |from, to| named(&named(&longs(&[rootfs]), from), to);
    let rename2 = |flags, from, to| {
        let head = [longs(&[rootfs]), words(&[flags, 0])].concat();
        named(&named(&head, from), to)
    };
    all(
        client,
        rootfs,
        &[
            ("mkdir", op::MKDIR, named(&words(&[0o755, 0o022]), "d")),
            ("mkdir b", op::MKDIR, named(&words(&[0o755, 0]), "e")),
            ("fifo", op::MKNOD, mknod(libc::S_IFIFO, 0, "fifo")),
            ("socket", op::MKNOD, mknod(libc::S_IFSOCK, 0, "socket")),
            ("file", op::MKNOD, mknod(libc::S_IFREG, 0, "f")),
            (
                "block device",
                op::MKNOD,
                mknod(libc::S_IFBLK, 0x800, "node"),
            ),
            ("symlink", op::SYMLINK, named(&named(&[], "l"), "target")),
            ("link", op::LINK, named(&longs(&[file]), "g")),
            ("rename", op::RENAME, rename("g", "h")),
            ("exchange", op::RENAME2, rename2(2, "a", "h")),
            ("no replace", op::RENAME2, rename2(1, "h", "i")),
            ("unlink", op::UNLINK, named(&[], "i")),
            ("rmdir", op::RMDIR, named(&[], "e")),
            ("statfs", op::STATFS, Vec::new()),
            ("access", op::ACCESS, words(&[7, 0])),
            ("syncfs", op::SYNCFS, longs(&[0])),
        ],
    );
    let link = client.lookup(rootfs, "l").unwrap();
    assert_eq!(client.ask(op::READLINK, link, &[]).unwrap(), b"target");
    let opened = client.ask(op::OPENDIR, rootfs, &words(&[0, 0])).unwrap();
    let handle = u64_at(&opened, 0);
    let read = [longs(&[handle, 0]), words(&[4096, 0]), longs(&[0, 0])].concat();
    let release = [longs(&[handle]), words(&[0, 0]), longs(&[0])].concat();
    all(
        client,
        rootfs,
        &[
            ("readdir", op::READDIR, read.clone()),
            ("readdirplus", op::READDIRPLUS, read),
            (
                "fsyncdir",
                op::FSYNCDIR,
                [longs(&[handle]), words(&[0, 0])].concat(),
            ),
            ("releasedir", op::RELEASEDIR, release),
        ],
    );
}

fn attributes(client: &mut Client, rootfs: u64) {
    const TIMES_NOW: u32 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8;
    for name in ["f", "d", "fifo", "l"] {
        let inode = client.lookup(rootfs, name).unwrap();
        all(
            client,
            inode,
            &[
                ("getattr", op::GETATTR, vec![0; 16]),
                ("chown", op::SETATTR, setattr(1 << 1 | 1 << 2, 0)),
                ("utimes", op::SETATTR, setattr(TIMES_NOW, 0)),
                ("listxattr", op::LISTXATTR, words(&[4096, 0])),
                ("size of listxattr", op::LISTXATTR, words(&[0, 0])),
            ],
        );
        if name != "l" {
            all(client, inode, &[("chmod", op::SETATTR, setattr(1, 0o4755))]);
        }
        for attribute in [
            "user.a",
            "trusted.a",
            "security.a",
            "system.posix_acl_access",
        ] {
            let value = named(&words(&[1, 0, 0, 0]), attribute);
            let operations = [
                ("set", op::SETXATTR, [value, b"v".to_vec()].concat()),
                ("get", op::GETXATTR, named(&words(&[64, 0]), attribute)),
                ("size", op::GETXATTR, named(&words(&[0, 0]), attribute)),
                ("remove", op::REMOVEXATTR, named(&[], attribute)),
            ];
            // Not every file system has all of them, nor does every file; the call is made
            // nevertheless.
            let errors = client.errors(inode, &operations);
            let none = [libc::EOPNOTSUPP, libc::EPERM, libc::ENODATA, libc::EINVAL];
            assert!(
                errors.values().all(|error| none.contains(error)),
                "{attribute}: {errors:?}"
            );
        }
    }
}
