//! A cpio archive (format "newc") of one file, for guests that are not as they should be.

use std::fs;
use std::path::Path;

/// Writes an initrd whose `/init` has these bytes.
pub fn initrd_with(init: &[u8], path: &Path) {
    let mut archive = Vec::new();
    append(&mut archive, "init", 0o100_755, init);
    append(&mut archive, "TRAILER!!!", 0, b"");
    fs::write(path, archive).unwrap();
}

fn append(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let numbers = [
        1,
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(data.len()).unwrap(),
        0,
        0,
        0,
        0,
    ];
    archive.extend(b"070701");
    for number in numbers {
        archive.extend(format!("{number:08X}").bytes());
    }
    archive.extend(format!("{:08X}{:08X}", name.len() + 1, 0).bytes());
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(data);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    while !archive.len().is_multiple_of(4) {
        archive.push(0);
    }
}
