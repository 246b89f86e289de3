//! How often a vCPU left guest mode, from KVM's binary statistics.
//!
//! The statistics are a file: a header, descriptors with names and offsets, and values (KVM API documentation, `KVM_GET_STATS_FD`). The
//! descriptors do not change, so the value's place is looked up once.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Header and descriptors of a vCPU take about 4 KiB.
const DESCRIPTION_MAX_BYTES: usize = 64 * 1024;

/// The statistic `exits` of one vCPU.
#[derive(Debug)]
pub struct ExitCounter {
    file: File,
    offset: u64,
}

impl ExitCounter {
    /// The counter in a vCPU's statistics. None if there is none.
    #[must_use]
    pub fn new(file: File) -> Option<Self> {
        let mut description = vec![0; 24];
        file.read_exact_at(&mut description, 0).ok()?;
        let bytes = usize::try_from(u32_at(&description, DATA_OFFSET)?).ok()?;
        description.resize(bytes.min(DESCRIPTION_MAX_BYTES), 0);
        file.read_exact_at(&mut description, 0).ok()?;
        let offset = find(&description, b"exits")?;
        Some(Self { file, offset })
    }

    /// Its value now.
    #[must_use]
    pub fn read(&self) -> Option<u64> {
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, self.offset).ok()?;
        Some(u64::from_ne_bytes(value))
    }
}

// `struct kvm_stats_header`
const NAME_BYTES: usize = 4;
const COUNT: usize = 8;
const DESCRIPTORS_OFFSET: usize = 16;
const DATA_OFFSET: usize = 20;
// `struct kvm_stats_desc`
const VALUE_OFFSET: usize = 8;
const NAME: usize = 16;

/// Where in the file the value of the statistic `name` is.
fn find(description: &[u8], name: &[u8]) -> Option<u64> {
    let name_bytes = usize::try_from(u32_at(description, NAME_BYTES)?).ok()?;
    let table = usize::try_from(u32_at(description, DESCRIPTORS_OFFSET)?).ok()?;
    let data = u64::from(u32_at(description, DATA_OFFSET)?);
    let count = usize::try_from(u32_at(description, COUNT)?).ok()?;
    description
        .get(table..)?
        .chunks_exact(NAME + name_bytes)
        .take(count)
        .find(|entry| entry[NAME..].split(|byte| *byte == 0).next() == Some(name))
        .and_then(|entry| Some(data + u64::from(u32_at(entry, VALUE_OFFSET)?)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn statistics(names: &[&str]) -> Vec<u8> {
        let count = u32::try_from(names.len()).unwrap();
        let data = 24 + count * 24;
        let mut bytes = Vec::new();
        for word in [0, 8, count, 0, 24, data] {
            bytes.extend_from_slice(&u32::to_ne_bytes(word));
        }
        for (index, name) in (0u32..).zip(names) {
            for word in [0, 0, index * 8, 0] {
                bytes.extend_from_slice(&u32::to_ne_bytes(word));
            }
            let mut text = name.as_bytes().to_vec();
            text.resize(8, 0);
            bytes.extend(text);
        }
        for value in (0u64..).take(names.len()) {
            bytes.extend_from_slice(&(100 + value).to_ne_bytes());
        }
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn counter_is_found_by_its_whole_name() {
        let bytes = statistics(&["exit", "exits", "halt"]);
        assert_eq!(ExitCounter::new(file(&bytes)).unwrap().read(), Some(101));
    }

    #[test]
    fn other_files_have_no_counter() {
        assert!(ExitCounter::new(file(&statistics(&["halt"]))).is_none());
        assert!(ExitCounter::new(file(b"short")).is_none());
        assert!(ExitCounter::new(file(&[0; 64])).is_none());
    }
}
