//! Files as a container needs them.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use virtiofsd::filesystem::{FsOptions, OpenOptions, SetattrValid};
use virtiofsd::fuse::{
    Attr, AttrOut, CopyfilerangeIn, Dirent, EntryOut, FallocateIn, Kstatfs, LinkIn, LseekIn,
    LseekOut, Opcode, OpenIn, OpenOut, ReadIn, ReleaseIn, Rename2In, SetattrIn, WriteIn, WriteOut,
};
use vm_memory::ByteValued;

use super::client::{Client, PLENTY, ROOT, linux_options, parse, with_nul};

fn attributes(client: &mut Client, inode: u64) -> Attr {
    let reply = client.ask(Opcode::Getattr, inode, &[0; 16]).unwrap();
    parse::<AttrOut>(&reply).attr
}

fn change(client: &mut Client, inode: u64, valid: SetattrValid, attr: SetattrIn) -> Attr {
    let attr = SetattrIn {
        valid: valid.bits(),
        ..attr
    };
    let reply = client.ask(Opcode::Setattr, inode, attr.as_slice()).unwrap();
    parse::<AttrOut>(&reply).attr
}

/// The names in a directory, by READDIR with a buffer of `size` bytes.
fn names(client: &mut Client, inode: u64, size: u32) -> Vec<Vec<u8>> {
    let opened = client
        .ask(Opcode::Opendir, inode, OpenIn::default().as_slice())
        .unwrap();
    let fh = parse::<OpenOut>(&opened).fh;
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let body = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        let reply = client.ask(Opcode::Readdir, inode, body.as_slice()).unwrap();
        if reply.is_empty() {
            return names;
        }
        let mut rest = &reply[..];
        while !rest.is_empty() {
            let entry: Dirent = parse(rest);
            let length = size_of::<Dirent>() + usize::try_from(entry.namelen).unwrap();
            names.push(rest[size_of::<Dirent>()..length].to_vec());
            offset = entry.off;
            rest = &rest[length.next_multiple_of(8)..];
        }
    }
}

#[test]
fn init_agrees_on_what_a_rootfs_needs_and_not_on_writeback() {
    let mut client = Client::new(PLENTY);
    let (out, options) = client.init(linux_options()).unwrap();
    assert!(options.contains(linux_options() - FsOptions::WRITEBACK_CACHE));
    assert!(!options.contains(FsOptions::WRITEBACK_CACHE));
    assert_eq!((out.max_write, out.max_pages), (1 << 20, 256));
}

#[test]
fn written_bytes_are_read_back_and_are_the_hosts() {
    let mut client = Client::mounted();
    let (file, opened) = client.create(ROOT, b"file", libc::O_RDWR).unwrap();
    let data: Vec<u8> = (0..1 << 20)
        .map(|index: u32| index.to_le_bytes()[1])
        .collect();
    assert_eq!(client.write(file.nodeid, opened.fh, 3, &data), Ok(1 << 20));
    assert_eq!(
        client.read(file.nodeid, opened.fh, 3, 1 << 20).unwrap(),
        data
    );
    assert_eq!(attributes(&mut client, file.nodeid).size, (1 << 20) + 3);
    assert_eq!(std::fs::read(client.path("file")).unwrap()[3..], data);
}

#[test]
fn append_goes_to_the_end_whatever_the_offset() {
    let mut client = Client::mounted();
    std::fs::write(client.path("log"), "one ").unwrap();
    let inode = client.lookup(ROOT, b"log").unwrap().nodeid;
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let fh = client.open(inode, flags).unwrap().fh;
    let body = WriteIn {
        fh,
        size: 3,
        flags: flags.cast_unsigned(),
        ..WriteIn::default()
    };
    let reply = client
        .ask(Opcode::Write, inode, &[body.as_slice(), b"two"].concat())
        .unwrap();
    assert_eq!(parse::<WriteOut>(&reply).size, 3);
    assert_eq!(std::fs::read(client.path("log")).unwrap(), b"one two");
}

#[test]
fn open_truncates_in_one_step() {
    let mut client = Client::mounted();
    std::fs::write(client.path("file"), "old").unwrap();
    let inode = client.lookup(ROOT, b"file").unwrap().nodeid;
    client.open(inode, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(attributes(&mut client, inode).size, 0);
}

#[test]
fn unlinked_file_stays_readable_while_open() {
    let mut client = Client::mounted();
    let (file, opened) = client.create(ROOT, b"file", libc::O_RDWR).unwrap();
    client
        .write(file.nodeid, opened.fh, 0, b"still here")
        .unwrap();
    client
        .ask(Opcode::Unlink, ROOT, &with_nul(b"file"))
        .unwrap();
    assert!(!client.path("file").exists());
    assert_eq!(
        client.read(file.nodeid, opened.fh, 0, 64).unwrap(),
        b"still here"
    );
    assert_eq!(attributes(&mut client, file.nodeid).nlink, 0);
    let release = ReleaseIn {
        fh: opened.fh,
        ..ReleaseIn::default()
    };
    client
        .ask(Opcode::Release, file.nodeid, release.as_slice())
        .unwrap();
    assert_eq!(
        client.read(file.nodeid, opened.fh, 0, 64).err(),
        Some(libc::EBADF)
    );
}

#[test]
fn modes_sizes_and_times_are_set() {
    let mut client = Client::mounted();
    let inode = client.create(ROOT, b"file", libc::O_RDWR).unwrap().0.nodeid;
    let valid = SetattrValid::MODE | SetattrValid::SIZE | SetattrValid::MTIME;
    let attr = change(
        &mut client,
        inode,
        valid,
        SetattrIn {
            mode: 0o751,
            size: 12345,
            mtime: 1_000_000_000,
            mtimensec: 987_654_321,
            ..SetattrIn::default()
        },
    );
    assert_eq!((attr.mode & 0o7777, attr.size), (0o751, 12345));
    let metadata = std::fs::metadata(client.path("file")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o751);
    assert_eq!(
        (metadata.mtime(), metadata.mtime_nsec()),
        (1_000_000_000, 987_654_321)
    );
}

#[test]
fn set_user_id_is_kept_by_a_chmod() {
    let mut client = Client::mounted();
    let inode = client.create(ROOT, b"file", libc::O_RDWR).unwrap().0.nodeid;
    let mode = SetattrIn {
        mode: 0o4755,
        ..SetattrIn::default()
    };
    let attr = change(&mut client, inode, SetattrValid::MODE, mode);
    assert_eq!(attr.mode & 0o7777, 0o4755);
}

#[test]
fn sticky_and_set_group_id_directories_keep_their_bits() {
    let mut client = Client::mounted();
    let inode = client.mkdir(ROOT, b"tmp").unwrap().nodeid;
    let mode = SetattrIn {
        mode: 0o3777,
        ..SetattrIn::default()
    };
    let attr = change(&mut client, inode, SetattrValid::MODE, mode);
    assert_eq!(attr.mode & 0o7777, 0o3777);
    let below = client.mkdir(inode, b"below").unwrap();
    assert_eq!(below.attr.mode & libc::S_ISGID, libc::S_ISGID);
}

#[test]
fn symbolic_link_holds_any_target() {
    let mut client = Client::mounted();
    let target = b"../../outside/\xff";
    let body = [&with_nul(b"link")[..], &with_nul(target)].concat();
    let entry: EntryOut = parse(&client.ask(Opcode::Symlink, ROOT, &body).unwrap());
    assert_eq!(
        client.ask(Opcode::Readlink, entry.nodeid, &[]).unwrap(),
        target
    );
}

#[test]
fn hard_links_are_one_inode() {
    let mut client = Client::mounted();
    let file = client.create(ROOT, b"one", libc::O_RDWR).unwrap().0;
    let body = LinkIn {
        oldnodeid: file.nodeid,
    };
    let body = [body.as_slice(), &with_nul(b"two")].concat();
    let link: EntryOut = parse(&client.ask(Opcode::Link, ROOT, &body).unwrap());
    assert_eq!((link.nodeid, link.attr.nlink), (file.nodeid, 2));
    assert_eq!(client.lookup(ROOT, b"two").unwrap().nodeid, file.nodeid);
}

#[test]
fn rename_replaces_exchanges_or_refuses_as_told() {
    let mut client = Client::mounted();
    let rename = |client: &mut Client, flags| {
        let body = Rename2In {
            newdir: ROOT,
            flags,
            padding: 0,
        };
        let body = [body.as_slice(), b"a\0b\0"].concat();
        client.ask(Opcode::Rename2, ROOT, &body).err()
    };
    std::fs::write(client.path("a"), "a").unwrap();
    std::fs::write(client.path("b"), "b").unwrap();
    assert_eq!(
        rename(&mut client, libc::RENAME_NOREPLACE),
        Some(libc::EEXIST)
    );
    assert_eq!(rename(&mut client, libc::RENAME_EXCHANGE), None);
    assert_eq!(std::fs::read(client.path("a")).unwrap(), b"b");
    assert_eq!(rename(&mut client, 0), None);
    assert_eq!(std::fs::read(client.path("b")).unwrap(), b"b");
    assert!(!client.path("a").exists());
}

#[test]
fn names_of_255_bytes_that_are_no_text_are_kept() {
    let mut client = Client::mounted();
    let name = [0xfe; 255];
    client.create(ROOT, &name, libc::O_RDWR).unwrap();
    assert!(client.lookup(ROOT, &name).is_ok());
    assert!(names(&mut client, ROOT, 4096).contains(&name.to_vec()));
}

#[test]
fn ten_thousand_files_in_a_directory_are_listed_once_each() {
    let mut client = Client::mounted();
    for index in 0..10_000 {
        std::fs::write(client.path(&format!("file-{index}")), "").unwrap();
    }
    let mut listed = names(&mut client, ROOT, 32 << 10);
    listed.sort();
    let count = listed.len();
    listed.dedup();
    assert_eq!((count, listed.len()), (10_002, 10_002));
}

#[test]
fn holes_are_found_punched_and_counted() {
    let mut client = Client::mounted();
    let (file, opened) = client.create(ROOT, b"sparse", libc::O_RDWR).unwrap();
    let (inode, fh) = (file.nodeid, opened.fh);
    client.write(inode, fh, 1 << 20, &[1; 4096]).unwrap();
    let seek = |client: &mut Client, offset, whence: i32| {
        let body = LseekIn {
            fh,
            offset,
            whence: whence.cast_unsigned(),
            padding: 0,
        };
        let reply = client.ask(Opcode::Lseek, inode, body.as_slice())?;
        Ok(parse::<LseekOut>(&reply).offset)
    };
    assert_eq!(seek(&mut client, 0, libc::SEEK_DATA), Ok(1 << 20));
    assert_eq!(seek(&mut client, 0, libc::SEEK_HOLE), Ok(0));
    let punch = FallocateIn {
        fh,
        offset: 1 << 20,
        length: 4096,
        mode: (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).cast_unsigned(),
        padding: 0,
    };
    client
        .ask(Opcode::Fallocate, inode, punch.as_slice())
        .unwrap();
    assert_eq!(seek(&mut client, 0, libc::SEEK_DATA), Err(libc::ENXIO));
    let attr = attributes(&mut client, inode);
    assert_eq!((attr.size, attr.blocks), ((1 << 20) + 4096, 0));
}

#[test]
fn ranges_are_copied_by_the_host() {
    let mut client = Client::mounted();
    let (from, opened) = client.create(ROOT, b"from", libc::O_RDWR).unwrap();
    client
        .write(from.nodeid, opened.fh, 0, b"0123456789")
        .unwrap();
    let (to, target) = client.create(ROOT, b"to", libc::O_RDWR).unwrap();
    let body = CopyfilerangeIn {
        fh_in: opened.fh,
        off_in: 2,
        nodeid_out: to.nodeid,
        fh_out: target.fh,
        off_out: 0,
        len: 5,
        flags: 0,
    };
    client
        .ask(Opcode::CopyFileRange, from.nodeid, body.as_slice())
        .unwrap();
    assert_eq!(std::fs::read(client.path("to")).unwrap(), b"23456");
}

#[test]
fn statfs_is_the_hosts() {
    let mut client = Client::mounted();
    let reply = client.ask(Opcode::Statfs, ROOT, &[]).unwrap();
    let statfs: Kstatfs = parse(&reply);
    let host = rustix::fs::statvfs(client.path("")).unwrap();
    assert_eq!(
        (statfs.blocks, u64::from(statfs.namelen)),
        (host.f_blocks, host.f_namemax)
    );
}

#[test]
fn absent_names_are_remembered_in_a_rootfs_only() {
    let mut client = Client::mounted();
    let container = client.mkdir(ROOT, b"c").unwrap().nodeid;
    let rootfs = client.mkdir(container, b"rootfs").unwrap().nodeid;
    let volume = client.mkdir(container, b"volume").unwrap().nodeid;
    let absent = client.lookup(rootfs, b"absent").unwrap();
    assert_eq!((absent.nodeid, absent.entry_valid), (0, 1));
    for directory in [ROOT, container, volume] {
        assert_eq!(
            client.lookup(directory, b"absent").err(),
            Some(libc::ENOENT)
        );
    }
}

#[test]
fn change_by_the_host_is_seen_at_once_in_a_volume() {
    let mut client = Client::mounted();
    let container = client.mkdir(ROOT, b"c").unwrap().nodeid;
    let rootfs = client.mkdir(container, b"rootfs").unwrap().nodeid;
    let volume = client.mkdir(container, b"volume").unwrap().nodeid;
    let (kept, kept_open) = client.create(rootfs, b"f", libc::O_RDWR).unwrap();
    let (live, live_open) = client.create(volume, b"f", libc::O_RDWR).unwrap();
    assert!(kept.entry_valid > 0 && kept.attr_valid > 0);
    assert_eq!((live.entry_valid, live.attr_valid), (0, 0));
    assert_eq!((live.entry_valid_nsec, live.attr_valid_nsec), (0, 0));
    assert_ne!(kept_open.open_flags & OpenOptions::KEEP_CACHE.bits(), 0);
    assert_eq!(live_open.open_flags, 0);

    let host = std::fs::File::options()
        .write(true)
        .open(client.path("c/volume/f"))
        .unwrap();
    host.write_all_at(b"from the host", 0).unwrap();
    assert_eq!(attributes(&mut client, live.nodeid).size, 13);
    symlink("x", client.path("c/volume/link")).unwrap();
    assert!(client.lookup(volume, b"link").is_ok());
}
