//! Access control lists of the host in volumes, of which the guest's kernel knows nothing.

use std::os::unix::fs::chown;

use rustix::fs::XattrFlags;
use virtiofsd::filesystem::SetattrValid;
use virtiofsd::fuse::{Opcode, OpenIn, SetattrIn};
use vm_memory::ByteValued;

use super::client::{Client, ROOT};

const OWNER: u32 = 2000;
const OTHER: u32 = 1000;

/// Gives what is at `path` a list that denies [`OTHER`] everything, and lets everybody else read.
fn deny(client: &Client, path: &str) {
    // Version 2; then tag, permissions and id of each entry.
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 0, OTHER),
        (4, 5, u32::MAX),
        (16, 5, u32::MAX),
        (32, 5, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let path = client.path(path);
    chown(&path, Some(OWNER), Some(OWNER)).unwrap();
    rustix::fs::setxattr(&path, "system.posix_acl_access", &list, XattrFlags::empty()).unwrap();
}

/// What becomes of opening a file, listing a directory, finding a name in it, and cutting the file,
/// in this order.
fn tried(client: &mut Client, user: u32, directory: u64, file: u64) -> [Option<i32>; 4] {
    client.user = user;
    let cut = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        ..SetattrIn::default()
    };
    let tried = [
        client.open(file, libc::O_RDONLY).err(),
        client
            .ask(Opcode::Opendir, directory, OpenIn::default().as_slice())
            .err(),
        client.lookup(directory, b"inside").err(),
        client.ask(Opcode::Setattr, file, cut.as_slice()).err(),
    ];
    client.user = 0;
    tried
}

#[test]
fn list_of_a_volumes_file_shuts_out_all_but_root_and_the_owner() {
    let mut client = Client::mounted();
    for directory in ["c/data/listed", "c/rootfs/listed", "c/data/plain"] {
        std::fs::create_dir_all(client.path(directory)).unwrap();
        std::fs::write(client.path(&format!("{directory}/inside")), "").unwrap();
    }
    for place in ["data", "rootfs"] {
        std::fs::write(client.path(&format!("c/{place}/file")), "text").unwrap();
        deny(&client, &format!("c/{place}/listed"));
        deny(&client, &format!("c/{place}/file"));
    }
    std::fs::write(client.path("c/data/plain/file"), "text").unwrap();
    let container = client.lookup(ROOT, b"c").unwrap().nodeid;
    let data = client.lookup(container, b"data").unwrap().nodeid;
    let rootfs = client.lookup(container, b"rootfs").unwrap().nodeid;
    let plain = client.lookup(data, b"plain").unwrap().nodeid;
    let mut found = |parent, name: &[u8]| client.lookup(parent, name).unwrap().nodeid;
    let listed = (found(data, b"listed"), found(data, b"file"));
    let own = (found(rootfs, b"listed"), found(rootfs, b"file"));
    let without = (plain, found(plain, b"file"));
    let denied = [Some(libc::EACCES); 4];
    assert_eq!(tried(&mut client, OTHER, listed.0, listed.1), denied);
    for user in [0, OWNER] {
        assert_eq!(tried(&mut client, user, listed.0, listed.1), [None; 4]);
    }
    // In a root file system the guest's kernel has looked at the list itself.
    assert_eq!(tried(&mut client, OTHER, own.0, own.1), [None; 4]);
    assert_eq!(tried(&mut client, OTHER, without.0, without.1), [None; 4]);
}
