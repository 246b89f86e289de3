//! Directories that shrink while they are read.

use std::collections::BTreeMap;

use virtiofsd::fuse::{Dirent, EntryOut, Opcode, OpenIn, OpenOut, ReadIn, ReleaseIn};
use vm_memory::ByteValued;

use super::client::{Client, ROOT, parse, with_nul};

const FILES: usize = 2000;
/// What Linux has room for.
const PAGE: u32 = 4096;

/// A directory that is read on and on.
struct Reading {
    fh: u64,
    offset: u64,
    plus: bool,
}

/// A name, where the next one begins, and its inode if it was told.
type Told = (Vec<u8>, u64, u64);

impl Reading {
    fn begin(client: &mut Client, plus: bool) -> Self {
        let body = OpenIn::default();
        let opened = client.ask(Opcode::Opendir, ROOT, body.as_slice()).unwrap();
        let fh = parse::<OpenOut>(&opened).fh;
        Self {
            fh,
            offset: 0,
            plus,
        }
    }

    /// The next page of it, without the directory itself and the one above.
    fn page(&mut self, client: &mut Client, size: u32) -> Option<Vec<Told>> {
        let body = ReadIn {
            fh: self.fh,
            offset: self.offset,
            size,
            ..ReadIn::default()
        };
        let opcode = if self.plus {
            Opcode::Readdirplus
        } else {
            Opcode::Readdir
        };
        let reply = client.ask(opcode, ROOT, body.as_slice()).unwrap();
        let mut told = Vec::new();
        let mut rest = &reply[..];
        while !rest.is_empty() {
            let mut inode = 0;
            if self.plus {
                inode = parse::<EntryOut>(rest).nodeid;
                rest = &rest[size_of::<EntryOut>()..];
            }
            let entry: Dirent = parse(rest);
            let length = size_of::<Dirent>() + usize::try_from(entry.namelen).unwrap();
            let name = rest[size_of::<Dirent>()..length].to_vec();
            self.offset = entry.off;
            if !matches!(&name[..], b"." | b"..") {
                told.push((name, entry.off, inode));
            }
            rest = &rest[length.next_multiple_of(8)..];
        }
        (!reply.is_empty()).then_some(told)
    }
}

fn filled() -> Client {
    let client = Client::mounted();
    for number in 0..FILES {
        std::fs::write(client.path(&format!("file-{number}")), "").unwrap();
    }
    client
}

#[test]
fn directory_is_told_once_though_all_that_was_told_is_removed() {
    let mut client = filled();
    let mut reading = Reading::begin(&mut client, true);
    let mut seen = BTreeMap::new();
    while let Some(told) = reading.page(&mut client, PAGE) {
        for (name, ..) in told {
            client.ask(Opcode::Unlink, ROOT, &with_nul(&name)).unwrap();
            *seen.entry(name).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.len(), FILES);
    assert!(seen.values().all(|times| *times == 1));
    assert_eq!(std::fs::read_dir(client.path("")).unwrap().count(), 0);
}

#[test]
fn names_that_are_gone_are_told_without_attributes() {
    let mut client = filled();
    let mut reading = Reading::begin(&mut client, true);
    let first = reading.page(&mut client, PAGE).unwrap();
    assert!(first.iter().all(|told| told.2 != 0));
    for number in 0..FILES {
        std::fs::remove_file(client.path(&format!("file-{number}"))).unwrap();
    }
    let second = reading.page(&mut client, PAGE).unwrap();
    assert!(!second.is_empty());
    assert!(second.iter().all(|told| told.2 == 0));
}

#[test]
fn positions_are_gone_back_to() {
    let mut client = filled();
    let mut reading = Reading::begin(&mut client, false);
    let mut all = Vec::new();
    while let Some(told) = reading.page(&mut client, 700) {
        all.extend(told);
    }
    assert_eq!(all.len(), FILES);
    for index in [0, 1, FILES / 2, FILES - 2] {
        reading.offset = all[index].1;
        let told = reading.page(&mut client, 700).unwrap();
        assert_eq!(told[0].0, all[index + 1].0, "{index}");
        // And on from there.
        let next = reading.page(&mut client, 700);
        let expected = all.get(index + 1 + told.len()).map(|entry| &entry.0);
        assert_eq!(
            next.as_ref().and_then(|n| n.first()).map(|n| &n.0),
            expected
        );
    }
    reading.offset = 0;
    std::fs::write(client.path("new"), "").unwrap();
    let mut again = 0;
    while let Some(told) = reading.page(&mut client, PAGE) {
        again += told.len();
    }
    assert_eq!(again, FILES + 1);
    let release = ReleaseIn {
        fh: reading.fh,
        ..ReleaseIn::default()
    };
    client
        .ask(Opcode::Releasedir, ROOT, release.as_slice())
        .unwrap();
    let body = ReadIn {
        fh: reading.fh,
        size: PAGE,
        ..ReadIn::default()
    };
    let closed = client.ask(Opcode::Readdir, ROOT, body.as_slice());
    assert_eq!(closed.err(), Some(libc::EBADF));
}
