//! What POSIX and Linux promise of a local file system beyond what [`crate::checks`] looks at, each
//! in an empty working directory.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};

use anyhow::{Context, Result, ensure};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Timespec, Timestamps,
};
use rustix::io::Errno;

use crate::checks::{Check, as_user};
use crate::mapping;

/// All of them.
pub(crate) const ALL: &[Check] = &[
    ("shrinking", shrinking),
    ("unnamed", unnamed),
    ("exchange", exchange),
    ("holes", holes),
    ("allocate", allocate),
    ("copy-range", copy_range),
    ("large", large),
    ("old-times", old_times),
    ("change-times", change_times),
    ("refusals", refusals),
    ("privileges-cleared", privileges_cleared),
    ("statistics", statistics),
    ("mapped-for-the-host", mapped_for_the_host),
];

/// Entries of the directory that shrinks, more than the server reads at once.
const ENTRIES: usize = 450;

fn shrinking() -> Result<()> {
    for number in 0..ENTRIES {
        File::create(format!("entry-{number}"))?;
    }
    let directory = File::open(".")?;
    let mut seen = BTreeMap::new();
    // Room for a few entries at a time, as a program with small buffers has.
    let mut room = [MaybeUninit::uninit(); 320];
    let mut entries = RawDir::new(&directory, &mut room);
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        rustix::fs::unlinkat(CWD, &name, AtFlags::empty())
            .with_context(|| format!("{name:?} was told, and is not there"))?;
        *seen.entry(name).or_insert(0) += 1;
    }
    ensure!(seen.len() == ENTRIES, "{} of {ENTRIES}", seen.len());
    ensure!(fs::read_dir(".")?.count() == 0, "some are left");
    // The same descriptor from the start, and from a place it was at before.
    for number in 0..200 {
        File::create(format!("entry-{number}"))?;
    }
    rustix::fs::seek(&directory, SeekFrom::Start(0))?;
    let all = listed(&directory)?;
    ensure!(all.len() == 202, "after rewinding: {}", all.len());
    rustix::fs::seek(&directory, SeekFrom::Start(all[100].1))?;
    let rest = listed(&directory)?;
    ensure!(
        rest.first() == all.get(101) && rest.len() == 101,
        "after going back: {} from {:?}",
        rest.len(),
        rest.first()
    );
    Ok(())
}

/// The names from where `directory` is, and where the next of each begins.
fn listed(directory: &File) -> Result<Vec<(CString, u64)>> {
    let mut room = [MaybeUninit::uninit(); 320];
    let mut entries = RawDir::new(directory, &mut room);
    let mut listed = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        listed.push((entry.file_name().to_owned(), entry.next_entry_cookie()));
    }
    Ok(listed)
}

fn unnamed() -> Result<()> {
    let open = |flags: OFlags| {
        let mode = Mode::from_bits_retain(0o640);
        rustix::fs::openat(CWD, ".", flags | OFlags::TMPFILE, mode).map(File::from)
    };
    let file = open(OFlags::RDWR)?;
    file.write_all_at(b"text", 0)?;
    let found = file.metadata()?;
    ensure!(
        found.nlink() == 0 && found.mode() & 0o777 == 0o640,
        "{found:?}"
    );
    ensure!(fs::read_dir(".")?.count() == 0, "it has a name");
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    ensure!(fs::read_to_string(&itself)? == "text", "opened again");
    rustix::fs::linkat(CWD, &itself, CWD, "named", AtFlags::SYMLINK_FOLLOW)?;
    ensure!(fs::read_to_string("named")? == "text", "by its name");
    ensure!(
        fs::metadata("named")?.ino() == found.ino() && file.metadata()?.nlink() == 1,
        "it is another file"
    );
    file.write_all_at(b"T", 0)?;
    ensure!(fs::read_to_string("named")? == "Text", "written afterwards");
    let exclusive = open(OFlags::WRONLY | OFlags::EXCL)?;
    let itself = format!("/proc/self/fd/{}", exclusive.as_raw_fd());
    let refused = rustix::fs::linkat(CWD, &itself, CWD, "never", AtFlags::SYMLINK_FOLLOW);
    ensure!(refused == Err(Errno::NOENT), "{refused:?}");
    fs::set_permissions(".", fs::Permissions::from_mode(0o777))?;
    as_user(2000, move || {
        let own = rustix::fs::openat(
            CWD,
            ".",
            OFlags::WRONLY | OFlags::TMPFILE,
            Mode::from_bits_retain(0o600),
        )?;
        let found = File::from(own).metadata()?;
        ensure!((found.uid(), found.gid()) == (2000, 2000), "{found:?}");
        Ok(())
    })
}

fn exchange() -> Result<()> {
    fs::write("one", "1")?;
    fs::create_dir("two")?;
    fs::write("two/inside", "2")?;
    rustix::fs::renameat_with(CWD, "one", CWD, "two", RenameFlags::EXCHANGE)?;
    ensure!(fs::read_to_string("two")? == "1", "the file");
    ensure!(fs::read_to_string("one/inside")? == "2", "the folder");
    let missing = rustix::fs::renameat_with(CWD, "one", CWD, "three", RenameFlags::EXCHANGE);
    ensure!(missing == Err(Errno::NOENT), "{missing:?}");
    rustix::fs::renameat_with(CWD, "two", CWD, "three", RenameFlags::NOREPLACE)?;
    let there = rustix::fs::renameat_with(CWD, "three", CWD, "one", RenameFlags::NOREPLACE);
    ensure!(there == Err(Errno::EXIST), "{there:?}");
    Ok(())
}

fn holes() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let file = File::create_new("holes")?;
    file.set_len(4 * MIB)?;
    file.write_all_at(&vec![b'x'; 1 << 16], 2 * MIB)?;
    file.sync_all()?;
    let seek = |to| rustix::fs::seek(&file, to);
    ensure!(seek(SeekFrom::Hole(0)) == Ok(0), "it begins with a hole");
    let data = seek(SeekFrom::Data(0))?;
    ensure!(data == 2 * MIB, "data at {data}");
    let hole = seek(SeekFrom::Hole(data))?;
    ensure!(hole == 2 * MIB + (1 << 16), "a hole at {hole}");
    let none = seek(SeekFrom::Data(3 * MIB));
    ensure!(none == Err(Errno::NXIO), "{none:?}");
    let beyond = seek(SeekFrom::Hole(5 * MIB));
    ensure!(beyond == Err(Errno::NXIO), "{beyond:?}");
    Ok(())
}

fn allocate() -> Result<()> {
    let file = File::create_new("allocated")?;
    let call = |mode, at, length| rustix::fs::fallocate(&file, mode, at, length);
    call(FallocateFlags::empty(), 0, 1 << 16)?;
    let found = file.metadata()?;
    ensure!(found.len() == 1 << 16 && found.blocks() >= 128, "{found:?}");
    call(FallocateFlags::KEEP_SIZE, 1 << 16, 1 << 16)?;
    ensure!(file.metadata()?.len() == 1 << 16, "the size is kept");
    file.write_all_at(&[b'x'; 3 * 4096], 0)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    call(punch, 4096, 4096)?;
    let mut bytes = [1; 3 * 4096];
    file.read_exact_at(&mut bytes, 0)?;
    ensure!(bytes[4096..8192].iter().all(|byte| *byte == 0), "the hole");
    ensure!(bytes[4095] == b'x' && bytes[8192] == b'x', "beside it");
    let wrong = call(FallocateFlags::PUNCH_HOLE, 0, 4096);
    ensure!(wrong.is_err(), "a hole that would change the size");
    Ok(())
}

fn copy_range() -> Result<()> {
    let data: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[1]).collect();
    fs::write("source", &data)?;
    let source = File::open("source")?;
    let target = File::create_new("target")?;
    let (mut from, mut to) = (1000, 5);
    while from < 100_000 {
        let (at, into) = (Some(&mut from), Some(&mut to));
        let copied = rustix::fs::copy_file_range(&source, at, &target, into, 1 << 20)?;
        ensure!(copied > 0, "it ends at {from}");
    }
    let copy = fs::read("target")?;
    ensure!(copy[..5] == [0; 5] && copy[5..] == data[1000..], "the copy");
    Ok(())
}

fn large() -> Result<()> {
    const AT: u64 = (5 << 30) + 17;
    let file = File::create_new("large")?;
    file.write_all_at(b"far", AT)?;
    ensure!(
        file.metadata()?.len() == AT + 3,
        "{}",
        file.metadata()?.len()
    );
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes[1..], AT)?;
    ensure!(&bytes == b"\0far", "{bytes:?}");
    ensure!(file.metadata()?.blocks() < 1024, "it is sparse");
    let byte = mapping::with(&file, 4096, true, |bytes| bytes.get(0))?;
    ensure!(byte == 0, "mapped");
    file.set_len(1)?;
    ensure!(fs::metadata("large")?.len() == 1, "cut");
    Ok(())
}

fn old_times() -> Result<()> {
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    fs::write("old", "x")?;
    symlink("old", "link")?;
    for (path, seconds) in [
        ("old", -1_000_000_000),
        ("old", -1),
        ("link", -77),
        (".", -3),
    ] {
        let times = Timestamps {
            last_access: time(seconds, 123_456_789),
            last_modification: time(seconds, 1),
        };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .with_context(|| format!("{path} {seconds}"))?;
        let found = fs::symlink_metadata(path)?;
        ensure!(
            (found.atime(), found.atime_nsec()) == (seconds, 123_456_789)
                && (found.mtime(), found.mtime_nsec()) == (seconds, 1),
            "{path} {seconds}: {found:?}"
        );
    }
    Ok(())
}

/// A time long ago, so that a change is seen whatever the clock's steps are.
fn make_old(path: &str) -> Result<()> {
    let past = Timespec {
        tv_sec: 1000,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: past,
        last_modification: past,
    };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?)
}

fn change_times() -> Result<()> {
    fs::create_dir("folder")?;
    let modified = |path: &str| -> Result<bool> {
        let changed = fs::metadata(path)?.mtime() != 1000;
        make_old(path)?;
        Ok(changed)
    };
    make_old("folder")?;
    fs::write("folder/file", "x")?;
    ensure!(modified("folder")?, "a new file");
    fs::rename("folder/file", "folder/other")?;
    ensure!(modified("folder")?, "a renamed file");
    fs::write("folder/other", "longer")?;
    ensure!(
        !modified("folder")?,
        "a written file is no change of its folder"
    );
    make_old("folder/other")?;
    fs::set_permissions("folder/other", fs::Permissions::from_mode(0o600))?;
    ensure!(!modified("folder/other")?, "a mode is not the content's");
    ensure!(
        fs::metadata("folder/other")?.ctime() > 1_000_000_000,
        "but a change of the file"
    );
    OpenOptions::new()
        .write(true)
        .open("folder/other")?
        .set_len(3)?;
    ensure!(modified("folder/other")?, "a file that was cut");
    fs::remove_file("folder/other")?;
    ensure!(modified("folder")?, "a removed file");
    Ok(())
}

/// What was asked, what came of it, and what must have.
type Refusal = (&'static str, rustix::io::Result<()>, Errno);

fn refusals() -> Result<()> {
    fs::write("file", "x")?;
    fs::create_dir_all("full/inside")?;
    fs::create_dir("empty")?;
    symlink("file", "link")?;
    for (what, found, expected) in changes_refused().into_iter().chain(opens_refused()) {
        ensure!(found == Err(expected), "{what}: {found:?}");
    }
    Ok(())
}

fn changes_refused() -> [Refusal; 9] {
    let remove = |path| rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR);
    let unlink = |path| rustix::fs::unlinkat(CWD, path, AtFlags::empty());
    let rename = |from, to| rustix::fs::renameat(CWD, from, CWD, to);
    let link = |from, to| rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty());
    [
        ("rmdir of a full folder", remove("full"), Errno::NOTEMPTY),
        ("rmdir of a file", remove("file"), Errno::NOTDIR),
        ("unlink of a folder", unlink("empty"), Errno::ISDIR),
        (
            "a full folder replaced",
            rename("empty", "full"),
            Errno::NOTEMPTY,
        ),
        (
            "a folder replaced by a file",
            rename("file", "empty"),
            Errno::ISDIR,
        ),
        (
            "a file replaced by a folder",
            rename("empty", "file"),
            Errno::NOTDIR,
        ),
        ("rename of nothing", rename("none", "other"), Errno::NOENT),
        ("a link to a folder", link("empty", "other"), Errno::PERM),
        (
            "a link in place of a file",
            link("file", "link"),
            Errno::EXIST,
        ),
    ]
}

fn opens_refused() -> [Refusal; 6] {
    let open = |path, flags: OFlags| rustix::fs::openat(CWD, path, flags, Mode::empty()).map(drop);
    let new = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    [
        (
            "a file as a folder",
            open("file/x", OFlags::RDONLY),
            Errno::NOTDIR,
        ),
        (
            "a file opened as a folder",
            open("file", OFlags::DIRECTORY),
            Errno::NOTDIR,
        ),
        (
            "a folder to be written",
            open("empty", OFlags::WRONLY),
            Errno::ISDIR,
        ),
        (
            "a link not followed",
            open("link", OFlags::NOFOLLOW),
            Errno::LOOP,
        ),
        ("a new file that is there", open("file", new), Errno::EXIST),
        (
            "a new file in place of a link",
            open("link", new),
            Errno::EXIST,
        ),
    ]
}

fn privileges_cleared() -> Result<()> {
    fs::set_permissions(".", fs::Permissions::from_mode(0o777))?;
    let made = |name: &str| -> Result<()> {
        fs::write(name, "text")?;
        chown(name, Some(1000), Some(1000))?;
        Ok(fs::set_permissions(
            name,
            fs::Permissions::from_mode(0o6777),
        )?)
    };
    let mode = |name: &str| -> Result<u32> { Ok(fs::metadata(name)?.mode() & 0o7777) };
    made("cut")?;
    as_user(2000, || {
        Ok(OpenOptions::new().write(true).open("cut")?.set_len(1)?)
    })?;
    ensure!(mode("cut")? == 0o777, "cut: {:o}", mode("cut")?);
    made("emptied")?;
    as_user(2000, || Ok(File::create("emptied").map(drop)?))?;
    ensure!(mode("emptied")? == 0o777, "emptied: {:o}", mode("emptied")?);
    made("given")?;
    chown("given", Some(1001), Some(1001))?;
    ensure!(mode("given")? == 0o777, "given: {:o}", mode("given")?);
    made("kept")?;
    OpenOptions::new()
        .write(true)
        .open("kept")?
        .write_all_at(b"x", 0)?;
    ensure!(mode("kept")? == 0o6777, "by root: {:o}", mode("kept")?);
    Ok(())
}

fn statistics() -> Result<()> {
    let numbers = |path: &str| -> Result<[u64; 5]> {
        let found = rustix::fs::statvfs(path)?;
        Ok([
            found.f_bsize,
            found.f_namemax,
            found.f_blocks,
            found.f_files,
            found.f_bfree,
        ])
    };
    let found = numbers(".")?;
    let [block, longest_name, blocks, _, free] = found;
    ensure!(block > 0 && longest_name == 255, "{found:?}");
    ensure!(blocks > 0 && free <= blocks, "{found:?}");
    fs::create_dir("folder")?;
    let below = numbers("folder")?;
    ensure!(below[..4] == found[..4], "{found:?} {below:?}");
    Ok(())
}

fn mapped_for_the_host() -> Result<()> {
    let file = File::create_new("mapped")?;
    file.set_len(8192)?;
    mapping::with(&file, 8192, true, |bytes| {
        bytes.set(0, b'a');
        bytes.set(4096, b'b');
    })?;
    Ok(())
}
