//! The kernel command line: words the machine itself needs, each with its reason, then those of the configuration (pure).

use crate::layout::{CMDLINE_MAX_BYTES, Slot, VIRTIO_WINDOW_BYTES};

/// The machine's words, each with its reason.
const WORDS: &[(&str, &str)] = &[
    (
        "quiet",
        "every line costs exits; warnings still come; before the early log, to be heeded by it",
    ),
    (
        "earlyprintk=ttyS0",
        "a log before there is a console device",
    ),
    ("console=hvc0", "the log from then on"),
    (
        "panic=-1",
        "a panic ends the machine at once instead of spinning",
    ),
    (
        "reboot=t",
        "a triple fault is the one reset every KVM reports",
    ),
    (
        "tsc=reliable",
        "KVM keeps the counters of all vCPUs in step; testing it takes 20 ms per vCPU",
    ),
];

/// For a machine that grows: what it gains is kept for pages that can be moved, as far as the kernel's own need allows, so that it can be
/// given back.
const MOVABLE: &str = "memory_hotplug.online_policy=auto-movable";

/// Why there is no command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// A word would be read as several.
    #[error("word {word:?} has a blank or a control character")]
    BadWord {
        /// The word.
        word: String,
    },
    /// The kernel would cut it off.
    #[error("the command line has {bytes} bytes, the kernel takes {}", CMDLINE_MAX_BYTES - 1)]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

/// The command line of a machine with these devices. `online` is how many of its vCPUs the kernel shall start, if not all.
pub fn compose(
    slots: &[Slot],
    online: Option<u8>,
    words: &[String],
) -> Result<String, CmdlineError> {
    let mut line: Vec<String> = WORDS.iter().map(|(word, _)| (*word).to_owned()).collect();
    line.extend(online.map(|count| format!("maxcpus={count}")));
    if slots.contains(&Slot::Mem) {
        line.push(MOVABLE.to_owned());
    }
    line.extend(slots.iter().map(|slot| {
        let kib = VIRTIO_WINDOW_BYTES / 1024;
        format!(
            "virtio_mmio.device={kib}K@{:#x}:{}",
            slot.address(),
            slot.irq()
        )
    }));
    for word in words {
        if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CmdlineError::BadWord { word: word.clone() });
        }
        line.push(word.clone());
    }
    let line = line.join(" ");
    if line.len() >= CMDLINE_MAX_BYTES {
        return Err(CmdlineError::TooLong { bytes: line.len() });
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn devices_come_before_the_words_of_init() {
        let line = compose(&[Slot::Vsock, Slot::Rng], Some(1), &words(&["--", "log=3"])).unwrap();
        assert!(line.ends_with(
            " maxcpus=1 virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0003000:8 -- log=3"
        ));
    }

    #[test]
    fn words_with_blanks_are_refused() {
        for word in ["", "a b", "a\n", "a\0", "\u{e9}"] {
            assert!(matches!(
                compose(&[], None, &words(&[word])),
                Err(CmdlineError::BadWord { .. })
            ));
        }
    }

    #[test]
    fn overlong_line_is_refused() {
        let long = "x".repeat(CMDLINE_MAX_BYTES);
        assert!(matches!(
            compose(&[], None, &[long]),
            Err(CmdlineError::TooLong { .. })
        ));
    }
}
