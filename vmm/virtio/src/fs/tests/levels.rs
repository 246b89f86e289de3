//! A guest that was taken over and writes above its containers' files: at the share, a container's
//! directory, its `mounts`, and at the places where nothing is mounted yet.

use std::fs;
use std::path::Path;

use virtiofsd::filesystem::SetattrValid;
use virtiofsd::fuse::{
    CopyfilerangeIn, FallocateIn, LinkIn, MknodIn, Opcode, OpenIn, Rename2In, RenameIn, SetattrIn,
    SetxattrIn,
};
use vm_memory::ByteValued;

use super::client::{Client, ROOT, linux_options, with_nul};

/// Every file of a share as a supervisor has made it, with what a change would show in.
fn snapshot(below: &Path) -> Vec<String> {
    let mut seen: Vec<String> = fs::read_dir(below)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let line = format!(
                "{} {:?} {} {:?}",
                path.display(),
                metadata.permissions(),
                metadata.len(),
                metadata.modified().unwrap()
            );
            let mut lines = vec![line];
            if metadata.is_dir() {
                lines.extend(snapshot(&path));
            }
            lines
        })
        .collect();
    seen.sort();
    seen
}

/// The inodes of the directories, and the file.
fn levels(client: &mut Client) -> (Vec<u64>, u64) {
    let mut found = |parent, name: &[u8]| client.lookup(parent, name).unwrap().nodeid;
    let container = found(ROOT, b"c");
    let rootfs = found(container, b"rootfs");
    let mounts = found(container, b"mounts");
    let directory = found(mounts, b"0");
    let file = found(mounts, b"1");
    (vec![ROOT, container, rootfs, mounts, directory], file)
}

/// Changes of a directory's entries: operation, opcode, body.
fn changes_of_entries(file: u64, other: u64) -> Vec<(&'static str, Opcode, Vec<u8>)> {
    let new = with_nul(b"new");
    let mknod = |mode| MknodIn {
        mode,
        ..MknodIn::default()
    };
    let rename2 = |flags| Rename2In {
        newdir: other,
        flags,
        ..Rename2In::default()
    };
    let rename = RenameIn { newdir: other };
    let link = LinkIn { oldnodeid: file };
    vec![
        ("mkdir", Opcode::Mkdir, [&[0; 8][..], &new].concat()),
        (
            "mknod",
            Opcode::Mknod,
            [mknod(libc::S_IFREG | 0o600).as_slice(), &new].concat(),
        ),
        (
            "mknod device",
            Opcode::Mknod,
            [mknod(libc::S_IFBLK | 0o600).as_slice(), &new].concat(),
        ),
        ("symlink", Opcode::Symlink, [&new[..], b"/etc\0"].concat()),
        ("link", Opcode::Link, [link.as_slice(), &new].concat()),
        (
            "rename",
            Opcode::Rename,
            [rename.as_slice(), &new, &new].concat(),
        ),
        (
            "rename2",
            Opcode::Rename2,
            [rename2(0).as_slice(), &new, &new].concat(),
        ),
        (
            "exchange",
            Opcode::Rename2,
            [rename2(libc::RENAME_EXCHANGE).as_slice(), &new, &new].concat(),
        ),
        ("unlink", Opcode::Unlink, new.clone()),
        ("rmdir", Opcode::Rmdir, new.clone()),
        ("create", Opcode::Create, [&[0; 16][..], &new].concat()),
    ]
}

/// Changes of a file or a directory itself.
fn changes_of_itself() -> Vec<(&'static str, Opcode, Vec<u8>)> {
    let setattr = |valid: SetattrValid| {
        let body = SetattrIn {
            valid: valid.bits(),
            mode: 0o777,
            uid: 7.into(),
            ..SetattrIn::default()
        };
        body.as_slice().to_vec()
    };
    let setxattr = SetxattrIn {
        size: 1,
        ..SetxattrIn::default()
    };
    let fallocate = FallocateIn {
        length: 1 << 30,
        ..FallocateIn::default()
    };
    vec![
        ("chmod", Opcode::Setattr, setattr(SetattrValid::MODE)),
        ("chown", Opcode::Setattr, setattr(SetattrValid::UID)),
        ("truncate", Opcode::Setattr, setattr(SetattrValid::SIZE)),
        ("utimes", Opcode::Setattr, setattr(SetattrValid::MTIME)),
        (
            "setxattr",
            Opcode::Setxattr,
            [setxattr.as_slice(), b"user.a\0v"].concat(),
        ),
        ("removexattr", Opcode::Removexattr, with_nul(b"user.a")),
        (
            "fallocate",
            Opcode::Fallocate,
            fallocate.as_slice().to_vec(),
        ),
        ("write", Opcode::Write, vec![0; 40]),
    ]
}

/// Opens that could write, or make a file without a name.
fn opens() -> Vec<(String, Opcode, Vec<u8>)> {
    let tmpfile = libc::O_TMPFILE & !libc::O_DIRECTORY;
    let writing = [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_TRUNC,
        libc::O_CREAT,
        tmpfile | libc::O_RDWR,
        tmpfile,
        libc::O_ACCMODE,
    ];
    let both = [Opcode::Open, Opcode::Opendir];
    let opens = writing
        .into_iter()
        .flat_map(|flags| both.map(|opcode| (flags, opcode)));
    opens
        .map(|(flags, opcode)| {
            let body = OpenIn {
                flags: flags.cast_unsigned(),
                open_flags: 0,
            };
            (
                format!("{opcode:?} {flags:#o}"),
                opcode,
                body.as_slice().to_vec(),
            )
        })
        .collect()
}

#[test]
fn nothing_above_the_mounts_is_changed() {
    let mut client = Client::above_mounts();
    let before = snapshot(&client.path(""));
    let (directories, file) = levels(&mut client);
    for directory in &directories {
        for (operation, opcode, body) in changes_of_entries(file, *directory) {
            let answer = client.ask(opcode, *directory, &body);
            assert_eq!(
                answer.err(),
                Some(libc::EROFS),
                "{operation} in {directory}"
            );
        }
    }
    for inode in directories.iter().chain([&file]) {
        for (operation, opcode, body) in changes_of_itself() {
            let answer = client.ask(opcode, *inode, &body);
            assert_eq!(answer.err(), Some(libc::EROFS), "{operation} of {inode}");
        }
        for (operation, opcode, body) in opens() {
            let answer = client.ask(opcode, *inode, &body);
            assert_eq!(answer.err(), Some(libc::EROFS), "{operation} of {inode}");
        }
    }
    assert_eq!(snapshot(&client.path("")), before);
}

#[test]
fn what_is_there_keeps_its_name_and_contents() {
    let mut client = Client::above_mounts();
    let (directories, file) = levels(&mut client);
    let [root, container, _, mounts, _] = directories[..] else {
        panic!("five directories");
    };
    for (parent, name) in [(root, b"c"), (mounts, b"0"), (mounts, b"1")] {
        for opcode in [Opcode::Unlink, Opcode::Rmdir] {
            let answer = client.ask(opcode, parent, &with_nul(name));
            assert_eq!(answer.err(), Some(libc::EROFS), "{opcode:?}");
        }
        let rename = RenameIn { newdir: container };
        let body = [rename.as_slice(), &with_nul(name), &with_nul(b"new")].concat();
        assert_eq!(
            client.ask(Opcode::Rename, parent, &body).err(),
            Some(libc::EROFS)
        );
        let truncating = client.create(parent, name, libc::O_RDWR | libc::O_TRUNC);
        assert_eq!(truncating.err(), Some(libc::EROFS));
    }
    let read = client.open(file, libc::O_RDONLY).unwrap().fh;
    let copy = CopyfilerangeIn {
        fh_in: read,
        nodeid_out: file,
        fh_out: read,
        len: 1,
        ..CopyfilerangeIn::default()
    };
    let copied = client.ask(Opcode::CopyFileRange, file, copy.as_slice());
    assert_eq!(copied.err(), Some(libc::EROFS));
    assert_eq!(fs::read(client.path("c/mounts/1")).unwrap(), b"empty");
}

#[test]
fn levels_are_looked_at_and_listed() {
    let mut client = Client::above_mounts();
    let (directories, file) = levels(&mut client);
    for directory in directories {
        let opened = client.ask(Opcode::Opendir, directory, OpenIn::default().as_slice());
        assert!(opened.is_ok(), "{directory}");
    }
    assert_eq!(client.open(file, libc::O_RDONLY).map(|_| ()), Ok(()));
}

#[test]
fn levels_stay_the_supervisors_in_a_new_session_and_for_inodes_of_the_old_one() {
    let mut client = Client::above_mounts();
    let before = snapshot(&client.path(""));
    let (directories, _) = levels(&mut client);
    client.init(linux_options()).unwrap();
    for directory in &directories[1..] {
        assert_eq!(
            client.lookup(*directory, b"mounts").err(),
            Some(libc::EBADF)
        );
        assert_eq!(client.mkdir(*directory, b"new").err(), Some(libc::EROFS));
    }
    let (directories, _) = levels(&mut client);
    for directory in directories {
        assert_eq!(client.mkdir(directory, b"new").err(), Some(libc::EROFS));
    }
    assert_eq!(snapshot(&client.path("")), before);
}
