//! The checks, each in an empty working directory.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink,
};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, Timespec, Timestamps,
    XattrFlags,
};

use crate::mapping;

/// A name and what it stands for.
pub(crate) type Check = (&'static str, fn() -> Result<()>);

/// All of them.
pub(crate) const ALL: &[Check] = &[
    ("owner", owner),
    ("modes", modes),
    ("set-user-is-dropped", set_user_is_dropped),
    ("set-user-acts", set_user_acts),
    ("effective-root", effective_root),
    ("attributes", attributes),
    ("links", links),
    ("rename", rename),
    ("unlinked", unlinked),
    ("mappings", mappings),
    ("direct", direct),
    ("append", append),
    ("locks", locks),
    ("sparse", sparse),
    ("many", many),
    ("long-names", long_names),
    ("odd-names", odd_names),
    ("special", special),
    ("times", times),
    ("permissions", permissions),
];

fn owner() -> Result<()> {
    fs::write("owned", "x")?;
    chown("owned", Some(1234), Some(4321))?;
    let found = fs::metadata("owned")?;
    ensure!((found.uid(), found.gid()) == (1234, 4321), "{found:?}");
    symlink("owned", "link")?;
    std::os::unix::fs::lchown("link", Some(7), Some(8))?;
    ensure!(fs::symlink_metadata("link")?.uid() == 7, "the link's owner");
    ensure!(
        fs::metadata("link")?.uid() == 1234,
        "the file's owner is left alone"
    );
    Ok(())
}

fn modes() -> Result<()> {
    fs::write("mode", "x")?;
    fs::set_permissions("mode", fs::Permissions::from_mode(0o7751))?;
    ensure!(fs::metadata("mode")?.mode() & 0o7777 == 0o7751, "as set");
    fs::create_dir("shared")?;
    chown("shared", Some(0), Some(77))?;
    fs::set_permissions("shared", fs::Permissions::from_mode(0o2775))?;
    fs::write("shared/new", "")?;
    ensure!(
        fs::metadata("shared/new")?.gid() == 77,
        "the group of a set-group folder"
    );
    Ok(())
}

fn set_user_is_dropped() -> Result<()> {
    fs::write("program", "x")?;
    chown("program", Some(1000), Some(1000))?;
    fs::set_permissions("program", fs::Permissions::from_mode(0o4777))?;
    as_user(2000, || {
        Ok(OpenOptions::new()
            .append(true)
            .open("program")?
            .write_all(b"y")?)
    })?;
    let mode = fs::metadata("program")?.mode() & 0o7777;
    ensure!(mode == 0o777, "mode is {mode:o}");
    Ok(())
}

fn set_user_acts() -> Result<()> {
    fs::copy("/proc/self/exe", "program")?;
    chown("program", Some(0), Some(0))?;
    fs::set_permissions("program", fs::Permissions::from_mode(0o4755))?;
    let mut command = Command::new("./program");
    let status = command.arg("effective-root").uid(2000).status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

fn effective_root() -> Result<()> {
    let (user, effective) = (rustix::process::getuid(), rustix::process::geteuid());
    ensure!(
        !user.is_root() && effective.is_root(),
        "{user:?} {effective:?}"
    );
    Ok(())
}

fn attributes() -> Result<()> {
    fs::write("file", "x")?;
    rustix::fs::setxattr("file", "user.colour", b"green", XattrFlags::CREATE)?;
    let mut value = [0; 16];
    let length = rustix::fs::getxattr("file", "user.colour", &mut value)?;
    ensure!(&value[..length] == b"green", "as set");
    let again = rustix::fs::setxattr("file", "user.colour", b"x", XattrFlags::CREATE);
    ensure!(again == Err(rustix::io::Errno::EXIST), "{again:?}");
    let mut names = [0; 64];
    let length = rustix::fs::listxattr("file", &mut names)?;
    ensure!(
        names[..length]
            .split(|byte| *byte == 0)
            .any(|name| name == b"user.colour"),
        "listed"
    );
    rustix::fs::removexattr("file", "user.colour")?;
    let gone = rustix::fs::getxattr("file", "user.colour", &mut value);
    ensure!(gone == Err(rustix::io::Errno::NODATA), "{gone:?}");
    Ok(())
}

fn links() -> Result<()> {
    fs::write("one", "text")?;
    fs::hard_link("one", "two")?;
    let (one, two) = (fs::metadata("one")?, fs::metadata("two")?);
    ensure!(
        one.ino() == two.ino() && two.nlink() == 2,
        "{one:?} {two:?}"
    );
    fs::remove_file("one")?;
    ensure!(fs::read_to_string("two")? == "text", "still there");
    ensure!(fs::metadata("two")?.nlink() == 1, "one name is left");
    let target = "x".repeat(3000);
    symlink(&target, "long")?;
    ensure!(
        fs::read_link("long")?.as_os_str() == OsStr::new(&target),
        "as made"
    );
    symlink("two", "soft")?;
    ensure!(fs::read_to_string("soft")? == "text", "followed");
    symlink("soft-loop", "soft-loop")?;
    let looped = File::open("soft-loop").map_err(|error| error.raw_os_error());
    ensure!(matches!(looped, Err(Some(40))), "{looped:?}");
    Ok(())
}

fn rename() -> Result<()> {
    fs::write("new", "new")?;
    fs::write("old", "old")?;
    let mut open = File::open("old")?;
    fs::rename("new", "old")?;
    ensure!(fs::read_to_string("old")? == "new", "replaced");
    let mut text = String::new();
    open.read_to_string(&mut text)?;
    ensure!(text == "old", "the open file is the old one");
    ensure!(fs::metadata("new").is_err(), "the old name is gone");
    fs::create_dir_all("a/b")?;
    fs::rename("a/b", "c")?;
    let into_itself = fs::rename("a", "a/d");
    ensure!(into_itself.is_err(), "a folder does not fit into itself");
    let exclusive =
        rustix::fs::renameat_with(CWD, "old", CWD, "c", rustix::fs::RenameFlags::NOREPLACE);
    ensure!(exclusive == Err(rustix::io::Errno::EXIST), "{exclusive:?}");
    Ok(())
}

fn unlinked() -> Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open("gone")?;
    file.write_all(b"before ")?;
    fs::remove_file("gone")?;
    file.write_all(b"after")?;
    file.seek(SeekFrom::Start(0))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    ensure!(text == "before after", "{text:?}");
    ensure!(file.metadata()?.nlink() == 0, "no name is left");
    ensure!(fs::read_dir(".")?.count() == 0, "no trace is left");
    Ok(())
}

fn mappings() -> Result<()> {
    // Two programs map the same file: what one writes into a shared mapping, a read sees, and a private mapping keeps to itself.
    fs::write("mapped", vec![b'a'; 8192])?;
    let file = OpenOptions::new().read(true).write(true).open("mapped")?;
    mapping::with(&file, 8192, true, |bytes| bytes.set(4096, b'S'))?;
    ensure!(
        fs::read("mapped")?[4096] == b'S',
        "a shared mapping reaches the file"
    );
    mapping::with(&file, 8192, false, |bytes| bytes.set(0, b'P'))?;
    ensure!(fs::read("mapped")?[0] == b'a', "a private mapping does not");
    file.write_all_at(b"W", 1)?;
    let byte = mapping::with(&file, 8192, true, |bytes| bytes.get(1))?;
    ensure!(byte == b'W', "a write is seen in a mapping");
    Ok(())
}

fn direct() -> Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .custom_flags(i32::try_from(OFlags::DIRECT.bits())?)
        .open("direct")?;
    let mut buffer = vec![0; 3 * 4096];
    let start = buffer.as_ptr().align_offset(4096);
    buffer[start..start + 8192].fill(b'd');
    file.write_all_at(&buffer[start..start + 8192], 0)?;
    buffer.fill(0);
    file.read_exact_at(&mut buffer[start..start + 4096], 4096)?;
    ensure!(
        buffer[start..start + 4096].iter().all(|byte| *byte == b'd'),
        "as written"
    );
    ensure!(fs::read("direct")? == [b'd'; 8192], "seen without it too");
    Ok(())
}

fn append() -> Result<()> {
    let writers: Vec<_> = [b'a', b'b']
        .into_iter()
        .map(|byte| {
            std::thread::spawn(move || -> Result<()> {
                let mut file = OpenOptions::new().create(true).append(true).open("log")?;
                for _ in 0..500 {
                    file.write_all(&[byte; 10])?;
                }
                Ok(())
            })
        })
        .collect();
    for writer in writers {
        let Ok(written) = writer.join() else {
            bail!("a writer panicked")
        };
        written?;
    }
    let text = fs::read("log")?;
    ensure!(text.len() == 10_000, "{} bytes", text.len());
    ensure!(
        text.chunks(10)
            .all(|line| line.iter().all(|byte| *byte == line[0])),
        "mixed up"
    );
    Ok(())
}

fn locks() -> Result<()> {
    let first = File::create("lock")?;
    let second = File::open("lock")?;
    rustix::fs::flock(&first, FlockOperation::LockExclusive)?;
    let refused = rustix::fs::flock(&second, FlockOperation::NonBlockingLockShared);
    ensure!(refused == Err(rustix::io::Errno::WOULDBLOCK), "{refused:?}");
    rustix::fs::flock(&first, FlockOperation::Unlock)?;
    rustix::fs::flock(&second, FlockOperation::NonBlockingLockShared)?;
    rustix::fs::fcntl_lock(&first, FlockOperation::NonBlockingLockExclusive)
        .context("a record lock")
}

fn sparse() -> Result<()> {
    let file = File::create("sparse")?;
    file.write_all_at(b"x", 1 << 30)?;
    ensure!(
        file.metadata()?.blocks() < 1024,
        "{} blocks",
        file.metadata()?.blocks()
    );
    let file = OpenOptions::new().read(true).write(true).open("sparse")?;
    file.sync_all()?;
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0))?;
    ensure!(data > 0 && data <= 1 << 30, "data begins at {data}");
    rustix::fs::fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        data,
        4096,
    )?;
    let mut byte = [1];
    file.read_exact_at(&mut byte, 1 << 30)?;
    ensure!(byte == [0], "a hole reads as 0");
    Ok(())
}

fn many() -> Result<()> {
    // The host has made the others.
    for number in 9_800..10_000 {
        File::create(format!("file-{number}"))?;
    }
    let mut seen = vec![false; 10_000];
    for entry in fs::read_dir(".")? {
        let name = entry?
            .file_name()
            .into_string()
            .map_err(|name| anyhow::anyhow!("{name:?}"))?;
        let number: usize = name.trim_start_matches("file-").parse()?;
        ensure!(!std::mem::replace(&mut seen[number], true), "{name} twice");
    }
    ensure!(seen.iter().all(|seen| *seen), "some are missing");
    Ok(())
}

fn long_names() -> Result<()> {
    let name = "n".repeat(255);
    fs::write(&name, "x")?;
    ensure!(fs::read_to_string(&name)? == "x", "as written");
    let listed = fs::read_dir(".")?.next().context("an entry")??.file_name();
    ensure!(listed == OsStr::new(&name), "{listed:?}");
    let longer = fs::write("n".repeat(256), "x").map_err(|error| error.raw_os_error());
    ensure!(longer == Err(Some(36)), "{longer:?}");
    Ok(())
}

fn odd_names() -> Result<()> {
    for bytes in [&b"\xff\xfe"[..], b"new\nline", b" ", b"caf\xe9", b"..."] {
        let name = OsStr::from_bytes(bytes);
        fs::write(name, bytes)?;
        ensure!(fs::read(name)? == bytes, "{name:?}");
        let listed = fs::read_dir(".")?.next().context("an entry")??.file_name();
        ensure!(listed == name, "{listed:?}");
        fs::remove_file(name)?;
    }
    Ok(())
}

fn special() -> Result<()> {
    rustix::fs::mknodat(CWD, "pipe", FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    ensure!(fs::metadata("pipe")?.file_type().is_fifo(), "a pipe");
    let listener = std::os::unix::net::UnixListener::bind("socket")?;
    ensure!(fs::metadata("socket")?.file_type().is_socket(), "a socket");
    let peer = std::thread::spawn(move || listener.accept().map(|_| ()));
    std::os::unix::net::UnixStream::connect("socket")?;
    let Ok(accepted) = peer.join() else {
        bail!("the listener panicked")
    };
    accepted?;
    let reader = std::thread::spawn(|| fs::read_to_string("pipe"));
    fs::write("pipe", "through")?;
    let Ok(text) = reader.join() else {
        bail!("the reader panicked")
    };
    ensure!(text? == "through", "through the pipe");
    Ok(())
}

fn times() -> Result<()> {
    fs::write("file", "x")?;
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time(1000, 1),
        last_modification: time(2000, 999_999_999),
    };
    rustix::fs::utimensat(CWD, "file", &times, AtFlags::empty())?;
    let found = fs::metadata("file")?;
    ensure!(
        (found.atime(), found.atime_nsec()) == (1000, 1),
        "{found:?}"
    );
    ensure!(
        (found.mtime(), found.mtime_nsec()) == (2000, 999_999_999),
        "{found:?}"
    );
    fs::write("file", "y")?;
    ensure!(
        fs::metadata("file")?.mtime() > 1_000_000_000,
        "a write is noted"
    );
    Ok(())
}

fn permissions() -> Result<()> {
    fs::write("private", "secret")?;
    fs::set_permissions("private", fs::Permissions::from_mode(0o600))?;
    let read = as_user(2000, || {
        Ok(fs::read("private").map_err(|error| error.kind()))
    });
    ensure!(
        matches!(read?, Err(std::io::ErrorKind::PermissionDenied)),
        "it was read"
    );
    fs::set_permissions(".", fs::Permissions::from_mode(0o1777))?;
    let removed = as_user(2000, || {
        Ok(fs::remove_file("private").map_err(|error| error.kind()))
    });
    ensure!(
        matches!(removed?, Err(std::io::ErrorKind::PermissionDenied)),
        "sticky did not hold"
    );
    as_user(2000, || Ok(fs::write("own", "x")?))?;
    ensure!(
        fs::metadata("own")?.uid() == 2000,
        "a new file is its maker's"
    );
    Ok(())
}

/// Does something as another user, in a thread of its own: credentials are a thread's.
pub(crate) fn as_user<T: Send + 'static>(
    user: u32,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let thread = std::thread::spawn(move || {
        rustix::thread::set_thread_groups(&[])?;
        let group = rustix::process::Gid::from_raw(user);
        rustix::thread::set_thread_res_gid(group, group, group)?;
        let user = rustix::process::Uid::from_raw(user);
        rustix::thread::set_thread_res_uid(user, user, user)?;
        work()
    });
    let Ok(done) = thread.join() else {
        bail!("the thread of user {user} panicked")
    };
    done
}
