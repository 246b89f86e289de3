//! Messages that make no sense, and a guest that wants more than its share.

use virtiofsd::filesystem::FsOptions;
use virtiofsd::fuse::{
    BatchForgetIn, ForgetIn, GetxattrIn, InHeader, MkdirIn, Opcode, OutHeader, ReadIn,
};
use vm_memory::ByteValued;

use super::client::{Client, PLENTY, ROOM, ROOT, linux_options, parse, with_nul};
use crate::fs::share::Limits;

fn error_of(reply: &[u8]) -> i32 {
    assert_eq!(reply.len(), size_of::<OutHeader>());
    -parse::<OutHeader>(reply).error
}

#[test]
fn message_shorter_than_a_header_is_completed_without_an_answer() {
    let mut client = Client::mounted();
    let request = client.message(Opcode::Getattr, ROOT, &[0; 16]);
    for length in [0, 1, 16, 39] {
        assert_eq!(client.send(&request[..length], ROOM), b"");
    }
    assert!(client.lookup(ROOT, b"absent").is_err());
}

#[test]
fn message_without_room_for_an_answer_does_nothing() {
    let mut client = Client::mounted();
    let body = [MkdirIn::default().as_slice(), b"made\0"].concat();
    let request = client.message(Opcode::Mkdir, ROOT, &body);
    for room in [0, 1, 15] {
        assert_eq!(client.send(&request, room), b"");
    }
    assert!(!client.path("made").exists());
}

#[test]
fn message_with_less_room_than_its_answer_is_refused() {
    let mut client = Client::mounted();
    for opcode in [
        Opcode::Getattr,
        Opcode::Statfs,
        Opcode::Opendir,
        Opcode::Readdir,
        Opcode::Readdirplus,
    ] {
        let body = ReadIn {
            size: 4096,
            ..ReadIn::default()
        };
        let request = client.message(opcode, ROOT, body.as_slice());
        assert_ne!(error_of(&client.send(&request, 16)), 0, "{opcode:?}");
    }
}

#[test]
fn lies_about_the_length_are_refused() {
    let mut client = Client::mounted();
    let honest = client.message(Opcode::Lookup, ROOT, b"name\0");
    for length in [
        0,
        1,
        39,
        40,
        44,
        46,
        4096,
        1 << 20,
        (1 << 20) + 4097,
        u32::MAX,
    ] {
        let mut request = honest.clone();
        request[..4].copy_from_slice(&length.to_le_bytes());
        let errno = error_of(&client.send(&request, ROOM));
        assert!(
            matches!(errno, libc::EINVAL | libc::ENOMEM),
            "{length}: {errno}"
        );
    }
}

#[test]
fn unknown_operations_are_not_implemented() {
    let mut client = Client::mounted();
    for opcode in [0u32, 7, 19, 52, 53, 4096, u32::MAX] {
        let mut request = client.message(Opcode::Getattr, ROOT, &[0; 64]);
        request[4..8].copy_from_slice(&opcode.to_le_bytes());
        assert_eq!(error_of(&client.send(&request, ROOM)), libc::ENOSYS);
    }
    for opcode in [
        Opcode::Ioctl,
        Opcode::Poll,
        Opcode::SetupMapping,
        Opcode::Setlk,
    ] {
        assert_eq!(client.ask(opcode, ROOT, &[0; 64]).err(), Some(libc::ENOSYS));
    }
}

#[test]
fn every_operation_survives_zeros_and_ones_in_its_body() {
    let mut client = Client::mounted();
    // SYNCFS has no body, and would wait for whatever else the host writes.
    for opcode in (1..=51u32).filter(|opcode| *opcode != Opcode::Syncfs as u32) {
        for byte in [0, 0xff] {
            for length in [0, 1, 7, 8, 40, 64, 300] {
                let mut request = client.message(Opcode::Getattr, ROOT, &vec![byte; length]);
                request[4..8].copy_from_slice(&opcode.to_le_bytes());
                client.send(&request, ROOM);
            }
        }
    }
    client.init(linux_options()).unwrap();
    assert_eq!(client.lookup(ROOT, b"absent").err(), Some(libc::ENOENT));
}

#[test]
fn inodes_and_handles_nobody_gave_out_are_bad() {
    let mut client = Client::mounted();
    let (file, opened) = client.create(ROOT, b"file", libc::O_RDWR).unwrap();
    assert_eq!(client.lookup(77, b"x").err(), Some(libc::EBADF));
    assert_eq!(client.read(file.nodeid, 77, 0, 16).err(), Some(libc::EBADF));
    assert_eq!(client.read(ROOT, opened.fh, 0, 16).err(), Some(libc::EBADF));
    assert_eq!(client.open(77, libc::O_RDONLY).err(), Some(libc::EBADF));
}

#[test]
fn pipes_and_sockets_of_the_host_are_not_opened() {
    let mut client = Client::mounted();
    let _listener = std::os::unix::net::UnixListener::bind(client.path("socket")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, client.path("fifo"), 0o644.into()).unwrap();
    for name in [&b"socket"[..], b"fifo"] {
        let inode = client.lookup(ROOT, name).unwrap().nodeid;
        assert_eq!(client.open(inode, libc::O_RDWR).err(), Some(libc::EBADF));
    }
}

#[test]
fn guest_at_its_limit_gets_enfile_and_goes_on_after_a_forget() {
    let mut client = Client::mounted_with(Limits {
        descriptors: 4,
        kept_inodes: 4,
    });
    for name in ["a", "b", "c", "d"] {
        std::fs::write(client.path(name), name).unwrap();
    }
    // The root has one.
    let a = client.lookup(ROOT, b"a").unwrap();
    let b = client.lookup(ROOT, b"b").unwrap();
    let opened = client.open(a.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(client.lookup(ROOT, b"c").err(), Some(libc::ENFILE));
    assert_eq!(
        client.open(a.nodeid, libc::O_RDONLY).err(),
        Some(libc::ENFILE)
    );
    assert_eq!(
        client.create(ROOT, b"e", libc::O_RDWR).err(),
        Some(libc::ENFILE)
    );
    // What it has it can use, and an inode it knows costs nothing.
    assert_eq!(client.read(a.nodeid, opened.fh, 0, 16).unwrap(), b"a");
    assert_eq!(client.lookup(ROOT, b"b").unwrap().nodeid, b.nodeid);

    client.tell(Opcode::Forget, b.nodeid, ForgetIn { nlookup: 2 }.as_slice());
    assert!(client.lookup(ROOT, b"c").is_ok());
    assert_eq!(client.lookup(ROOT, b"d").err(), Some(libc::ENFILE));
}

#[test]
fn forgetting_more_than_there_is_forgets_once() {
    let mut client = Client::mounted();
    std::fs::write(client.path("a"), "").unwrap();
    let a = client.lookup(ROOT, b"a").unwrap().nodeid;
    client.tell(Opcode::Forget, a, ForgetIn { nlookup: u64::MAX }.as_slice());
    client.tell(Opcode::Forget, a, ForgetIn { nlookup: u64::MAX }.as_slice());
    assert_eq!(client.open(a, libc::O_RDONLY).err(), Some(libc::EBADF));
    assert!(client.lookup(ROOT, b"a").is_ok());
}

#[test]
fn batch_that_is_longer_than_its_message_forgets_nothing() {
    let mut client = Client::mounted();
    std::fs::write(client.path("a"), "").unwrap();
    let a = client.lookup(ROOT, b"a").unwrap().nodeid;
    for count in [2, 1 << 16, 1 << 28, u32::MAX] {
        let body = [
            u64::from(count).to_le_bytes(),
            a.to_le_bytes(),
            1u64.to_le_bytes(),
        ]
        .concat();
        client.tell(Opcode::BatchForget, 0, &body);
    }
    assert!(client.open(a, libc::O_RDONLY).is_ok());
    let batch = BatchForgetIn { count: 1, dummy: 0 };
    let body = [batch.as_slice(), &a.to_le_bytes(), &1u64.to_le_bytes()].concat();
    client.tell(Opcode::BatchForget, 0, &body);
    assert_eq!(client.open(a, libc::O_RDONLY).err(), Some(libc::EBADF));
}

#[test]
fn huge_sizes_are_cut_or_refused() {
    let mut client = Client::mounted();
    let (file, opened) = client.create(ROOT, b"file", libc::O_RDWR).unwrap();
    for offset in [1 << 63, u64::MAX] {
        let read = client.read(file.nodeid, opened.fh, offset, u32::MAX);
        assert_eq!(read.err(), Some(libc::EINVAL));
        let written = client.write(file.nodeid, opened.fh, offset, b"x");
        assert_eq!(written.err(), Some(libc::EINVAL));
    }
    assert_eq!(
        client.read(file.nodeid, opened.fh, 0, u32::MAX).unwrap(),
        b""
    );
    let body = GetxattrIn {
        size: u32::MAX,
        padding: 0,
    };
    assert_eq!(
        client.ask(Opcode::Listxattr, ROOT, body.as_slice()).err(),
        Some(libc::ENOMEM)
    );
    let body = ReadIn {
        size: u32::MAX,
        ..ReadIn::default()
    };
    assert_eq!(
        client.ask(Opcode::Readdir, ROOT, body.as_slice()).err(),
        Some(libc::EBADF)
    );
}

#[test]
fn guest_that_cannot_tell_mounts_apart_is_refused() {
    let mut client = Client::new(PLENTY);
    assert_eq!(client.init(FsOptions::empty()).err(), Some(libc::EPROTO));
    assert!(client.init(linux_options()).is_ok());
}

#[test]
fn nothing_is_served_before_init_and_after_destroy() {
    let mut client = Client::new(PLENTY);
    assert_eq!(client.lookup(ROOT, b"a").err(), Some(libc::EBADF));
    assert!(!client.server.in_session());
    client.init(linux_options()).unwrap();
    assert!(client.server.in_session());
    client.tell(Opcode::Destroy, 0, &[]);
    assert!(!client.server.in_session());
    assert_eq!(client.lookup(ROOT, b"a").err(), Some(libc::EBADF));
}

#[test]
fn truncated_extension_of_a_create_is_refused() {
    let mut client = Client::mounted();
    let name = with_nul(b"made");
    // One group announced in an extension whose length goes beyond the message.
    let extension = [
        200u32.to_le_bytes(),
        32u32.to_le_bytes(),
        1u32.to_le_bytes(),
    ]
    .concat();
    let body = [MkdirIn::default().as_slice(), &name, &extension].concat();
    assert_eq!(
        client.ask(Opcode::Mkdir, ROOT, &body).err(),
        Some(libc::EINVAL)
    );
    assert!(!client.path("made").exists());
    assert_eq!(size_of::<InHeader>(), 40);
}

#[test]
fn file_systems_of_the_host_are_not_written_out_in_a_loop() {
    let mut client = Client::mounted();
    let (file, _) = client.create(ROOT, b"file", libc::O_RDWR).unwrap();
    let start = std::time::Instant::now();
    for _ in 0..3 {
        client.ask(Opcode::Syncfs, file.nodeid, &[0; 8]).unwrap();
    }
    assert!(start.elapsed() >= std::time::Duration::from_millis(500));
    let mut client = Client::above_mounts();
    client.ask(Opcode::Syncfs, ROOT, &[0; 8]).unwrap();
}
