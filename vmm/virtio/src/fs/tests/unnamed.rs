//! Files without a name, and the attributes of an overlay's upper layer.

use std::os::unix::fs::MetadataExt;

use virtiofsd::filesystem::SetattrValid;
use virtiofsd::fuse::{
    AttrOut, CopyfilerangeIn, FallocateIn, ForgetIn, GetxattrIn, LinkIn, LseekIn, LseekOut, Opcode,
    ReleaseIn, SetattrIn, SetxattrIn, WriteOut,
};
use vm_memory::ByteValued;

use super::client::{Client, ROOT, parse, with_nul};
use crate::fs::share::Limits;

fn link(client: &mut Client, inode: u64, name: &[u8]) -> Result<Vec<u8>, i32> {
    let body = LinkIn { oldnodeid: inode };
    let body = [body.as_slice(), &with_nul(name)].concat();
    client.ask(Opcode::Link, ROOT, &body)
}

fn set(client: &mut Client, inode: u64, name: &[u8], value: &[u8]) -> Result<Vec<u8>, i32> {
    let body = SetxattrIn {
        size: u32::try_from(value.len()).unwrap(),
        ..SetxattrIn::default()
    };
    let body = [body.as_slice(), &with_nul(name), value].concat();
    client.ask(Opcode::Setxattr, inode, &body)
}

fn get(client: &mut Client, inode: u64, name: &[u8]) -> Result<Vec<u8>, i32> {
    let body = GetxattrIn {
        size: 100,
        padding: 0,
    };
    let body = [body.as_slice(), &with_nul(name)].concat();
    client.ask(Opcode::Getxattr, inode, &body)
}

fn list(client: &mut Client, inode: u64, size: u32) -> Result<Vec<u8>, i32> {
    let body = GetxattrIn { size, padding: 0 };
    client.ask(Opcode::Listxattr, inode, body.as_slice())
}

#[test]
fn file_without_a_name_is_used_and_linked_into_the_tree() {
    let mut client = Client::mounted();
    let (file, opened) = client.tmpfile(ROOT, libc::O_RDWR).unwrap();
    assert_eq!(
        (file.attr.mode, file.attr.nlink),
        (libc::S_IFREG | 0o640, 0)
    );
    assert_eq!(std::fs::read_dir(client.path("")).unwrap().count(), 0);
    assert_eq!(client.write(file.nodeid, opened.fh, 0, b"text"), Ok(4));
    assert_eq!(client.read(file.nodeid, opened.fh, 1, 64).unwrap(), b"ext");
    // Opened again, as by /proc/self/fd.
    let again = client.open(file.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(file.nodeid, again.fh, 0, 64).unwrap(), b"text");
    link(&mut client, file.nodeid, b"named").unwrap();
    assert_eq!(std::fs::read(client.path("named")).unwrap(), b"text");
    let found = client.lookup(ROOT, b"named").unwrap();
    assert_eq!((found.attr.ino, found.attr.nlink), (file.attr.ino, 1));
    let reply = client.ask(Opcode::Getattr, file.nodeid, &[0; 16]).unwrap();
    assert_eq!(parse::<AttrOut>(&reply).attr.nlink, 1);
    assert_eq!(
        link(&mut client, file.nodeid, b"named").err(),
        Some(libc::EEXIST)
    );
}

#[test]
fn exclusive_one_cannot_be_linked_and_others_are_gone_when_they_are_given_back() {
    let mut client = Client::mounted();
    let (file, opened) = client.tmpfile(ROOT, libc::O_WRONLY | libc::O_EXCL).unwrap();
    assert_eq!(
        link(&mut client, file.nodeid, b"x").err(),
        Some(libc::ENOENT)
    );
    let body = ReleaseIn {
        fh: opened.fh,
        ..ReleaseIn::default()
    };
    client
        .ask(Opcode::Release, file.nodeid, body.as_slice())
        .unwrap();
    let closed = client.write(file.nodeid, opened.fh, 0, b"x");
    assert_eq!(closed.err(), Some(libc::EBADF));
    let forget = ForgetIn { nlookup: 1 };
    client.tell(Opcode::Forget, file.nodeid, forget.as_slice());
    let gone = client.ask(Opcode::Getattr, file.nodeid, &[0; 16]);
    assert_eq!(gone.err(), Some(libc::EBADF));
    let reading = client.tmpfile(ROOT, libc::O_RDONLY);
    assert_eq!(reading.err(), Some(libc::EINVAL));
}

#[test]
fn every_operation_on_an_open_file_is_for_one_without_a_name_too() {
    let mut client = Client::mounted();
    let (file, opened) = client.tmpfile(ROOT, libc::O_RDWR).unwrap();
    let (inode, fh) = (file.nodeid, opened.fh);
    let attr = SetattrIn {
        valid: (SetattrValid::SIZE | SetattrValid::MODE | SetattrValid::MTIME).bits(),
        size: 1 << 20,
        mode: 0o600,
        mtime: (-5i64).cast_unsigned(),
        mtimensec: 7,
        ..SetattrIn::default()
    };
    let reply = client.ask(Opcode::Setattr, inode, attr.as_slice()).unwrap();
    let attr = parse::<AttrOut>(&reply).attr;
    assert_eq!((attr.size, attr.mode & 0o777), (1 << 20, 0o600));
    assert_eq!((attr.mtime.cast_signed(), attr.mtimensec), (-5, 7));
    client.write(inode, fh, 1 << 19, b"data").unwrap();
    let body = LseekIn {
        fh,
        offset: 0,
        whence: u32::try_from(libc::SEEK_DATA).unwrap(),
        padding: 0,
    };
    let reply = client.ask(Opcode::Lseek, inode, body.as_slice()).unwrap();
    assert!(parse::<LseekOut>(&reply).offset <= 1 << 19);
    let body = FallocateIn {
        fh,
        length: 1 << 21,
        ..FallocateIn::default()
    };
    client
        .ask(Opcode::Fallocate, inode, body.as_slice())
        .unwrap();
    let (named, target) = client.create(ROOT, b"copy", libc::O_RDWR).unwrap();
    let body = CopyfilerangeIn {
        fh_in: fh,
        off_in: 1 << 19,
        nodeid_out: named.nodeid,
        fh_out: target.fh,
        len: 4,
        ..CopyfilerangeIn::default()
    };
    let reply = client
        .ask(Opcode::CopyFileRange, inode, body.as_slice())
        .unwrap();
    assert_eq!(parse::<WriteOut>(&reply).size, 4);
    assert_eq!(std::fs::read(client.path("copy")).unwrap(), b"data");
    set(&mut client, inode, b"user.colour", b"green").unwrap();
    assert_eq!(get(&mut client, inode, b"user.colour").unwrap(), b"green");
    assert_eq!(list(&mut client, inode, 100).unwrap(), b"user.colour\0");
    for opcode in [Opcode::Statfs, Opcode::Syncfs, Opcode::Fsync, Opcode::Flush] {
        let body = [fh.to_le_bytes(), [0; 8], [0; 8]].concat();
        client.ask(opcode, inode, &body).unwrap();
    }
}

#[test]
fn so_many_files_without_a_name_are_kept_and_no_more() {
    let mut client = Client::mounted_with(Limits {
        descriptors: 32,
        kept_inodes: 32,
    });
    client.tmpfile(ROOT, libc::O_RDWR).unwrap();
    let (second, opened) = client.tmpfile(ROOT, libc::O_RDWR).unwrap();
    let third = client.tmpfile(ROOT, libc::O_RDWR);
    assert_eq!(third.err(), Some(libc::ENFILE));
    let again = client.open(second.nodeid, libc::O_RDONLY);
    assert_eq!(again.err(), Some(libc::ENFILE));
    let body = ReleaseIn {
        fh: opened.fh,
        ..ReleaseIn::default()
    };
    client
        .ask(Opcode::Release, second.nodeid, body.as_slice())
        .unwrap();
    client.open(second.nodeid, libc::O_RDONLY).unwrap();
}

#[test]
fn none_is_made_above_the_containers_files() {
    let mut client = Client::above_mounts();
    let container = client.lookup(ROOT, b"c").unwrap().nodeid;
    let rootfs = client.lookup(container, b"rootfs").unwrap().nodeid;
    for parent in [ROOT, container, rootfs, 99, 1 << 63, u64::MAX] {
        let made = client.tmpfile(parent, libc::O_RDWR);
        assert_eq!(made.err(), Some(libc::EROFS), "{parent}");
    }
    let mut client = Client::mounted();
    let (file, _) = client.tmpfile(ROOT, libc::O_RDWR).unwrap();
    for name in [&b"../escaped"[..], b"..", b"a/b"] {
        let linked = link(&mut client, file.nodeid, name);
        assert_eq!(linked.err(), Some(libc::EINVAL));
    }
    assert!(client.tmpfile(file.nodeid, libc::O_RDWR).is_err());
}

#[test]
fn trusted_attributes_are_kept_by_the_server() {
    let mut client = Client::mounted();
    let directory = client.mkdir(ROOT, b"upper").unwrap().nodeid;
    let name = b"trusted.overlay.opaque";
    set(&mut client, directory, name, b"y").unwrap();
    assert_eq!(get(&mut client, directory, name).unwrap(), b"y");
    assert_eq!(list(&mut client, directory, 100).unwrap(), with_nul(name));
    // How long they are is asked with 0.
    assert_eq!(list(&mut client, directory, 0).unwrap()[..4], [23, 0, 0, 0]);
    assert_eq!(list(&mut client, directory, 22).err(), Some(libc::ERANGE));
    let mut value = [0; 8];
    let kept = "user.husk.trusted.overlay.opaque";
    let length = rustix::fs::getxattr(client.path("upper"), kept, &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
    for own in [&b"user.husk.trusted.overlay.opaque"[..], b"user.husk.x"] {
        assert_eq!(get(&mut client, directory, own).err(), Some(libc::ENODATA));
        assert_eq!(
            set(&mut client, directory, own, b"").err(),
            Some(libc::EPERM)
        );
    }
    client
        .ask(Opcode::Removexattr, directory, &with_nul(name))
        .unwrap();
    assert_eq!(get(&mut client, directory, name).err(), Some(libc::ENODATA));
    assert_eq!(std::fs::metadata(client.path("upper")).unwrap().uid(), 0);
}
