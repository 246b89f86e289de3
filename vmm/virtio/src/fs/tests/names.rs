//! Names that lead out of the share.

use virtiofsd::fuse::{LinkIn, MknodIn, Opcode, Rename2In, RenameIn};
use vm_memory::ByteValued;

use super::client::{Client, ROOT, with_nul};

/// Every operation that takes a name, given this one. The errno of each that was refused, 0 for one that was not.
fn each_operation(client: &mut Client, name: &[u8]) -> Vec<(&'static str, i32)> {
    let (file, _) = client.create(ROOT, b"file", libc::O_RDWR).unwrap();
    let nul = with_nul(name);
    let mknod = MknodIn {
        mode: libc::S_IFIFO | 0o644,
        ..MknodIn::default()
    };
    let rename = RenameIn { newdir: ROOT };
    let rename2 = Rename2In {
        newdir: ROOT,
        ..Rename2In::default()
    };
    let link = LinkIn {
        oldnodeid: file.nodeid,
    };
    let good = with_nul(b"file");
    let bodies = [
        ("lookup", Opcode::Lookup, nul.clone()),
        ("unlink", Opcode::Unlink, nul.clone()),
        ("rmdir", Opcode::Rmdir, nul.clone()),
        ("symlink", Opcode::Symlink, [&nul[..], b"target\0"].concat()),
        ("mknod", Opcode::Mknod, [mknod.as_slice(), &nul].concat()),
        (
            "rename",
            Opcode::Rename,
            [rename.as_slice(), &nul, &good].concat(),
        ),
        (
            "rename to",
            Opcode::Rename,
            [rename.as_slice(), &good, &nul].concat(),
        ),
        (
            "rename2",
            Opcode::Rename2,
            [rename2.as_slice(), &nul, &good].concat(),
        ),
        (
            "rename2 to",
            Opcode::Rename2,
            [rename2.as_slice(), &good, &nul].concat(),
        ),
        ("link", Opcode::Link, [link.as_slice(), &nul].concat()),
    ];
    let mut errors: Vec<_> = bodies
        .into_iter()
        .map(|(operation, opcode, body)| {
            let answer = client.ask(opcode, ROOT, &body);
            (operation, answer.err().unwrap_or(0))
        })
        .collect();
    let created = client.create(ROOT, name, libc::O_RDWR);
    errors.push(("create", created.err().unwrap_or(0)));
    errors.push(("mkdir", client.mkdir(ROOT, name).err().unwrap_or(0)));
    errors
}

#[test]
fn no_operation_takes_a_name_that_leaves_its_directory() {
    for name in [
        &b"../victim"[..],
        b"..",
        b".",
        b"",
        b"sub/file",
        b"/etc/passwd",
    ] {
        let mut client = Client::mounted();
        std::fs::create_dir(client.path("sub")).unwrap();
        for (operation, errno) in each_operation(&mut client, name) {
            assert_eq!(errno, libc::EINVAL, "{operation} {name:?}");
        }
        let victim = client.directory.path().join("victim");
        assert_eq!(std::fs::read(victim).unwrap(), b"precious");
        assert_eq!(
            std::fs::read_dir(client.directory.path()).unwrap().count(),
            2
        );
    }
}

#[test]
fn no_operation_takes_a_name_that_is_too_long() {
    let mut client = Client::mounted();
    for (operation, errno) in each_operation(&mut client, &[b'x'; 256]) {
        assert_eq!(errno, libc::ENAMETOOLONG, "{operation}");
    }
}

#[test]
fn name_without_its_nul_is_refused() {
    let mut client = Client::mounted();
    std::fs::write(client.path("file"), "").unwrap();
    assert_eq!(
        client.ask(Opcode::Unlink, ROOT, b"file").err(),
        Some(libc::EINVAL)
    );
    assert!(client.path("file").exists());
}

#[test]
fn link_out_of_the_share_is_not_followed() {
    let mut client = Client::mounted();
    std::os::unix::fs::symlink("../victim", client.path("link")).unwrap();
    let link = client.lookup(ROOT, b"link").unwrap();
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert!(client.open(link.nodeid, libc::O_RDONLY).is_err());
    assert!(client.lookup(link.nodeid, b"x").is_err());
    assert_eq!(
        client
            .create(ROOT, b"link", libc::O_RDWR | libc::O_TRUNC)
            .err(),
        Some(libc::EBADF)
    );
    let victim = client.directory.path().join("victim");
    assert_eq!(std::fs::read(victim).unwrap(), b"precious");
}
