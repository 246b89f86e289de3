//! The kernel's command line: the words that are for the agent (pure).
//!
//! `husk.log=debug` lets debug lines through.

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) debug: bool,
}

/// Other words are the kernel's.
pub(crate) fn parse(cmdline: &str) -> Options {
    Options {
        debug: cmdline
            .split_ascii_whitespace()
            .any(|word| word == "husk.log=debug"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_asked_for_by_its_word_alone() {
        assert_eq!(
            parse("console=hvc0 husk.log=debug quiet\n"),
            Options { debug: true }
        );
        assert_eq!(
            parse("husk.log=debugging console=hvc0"),
            Options { debug: false }
        );
        assert_eq!(parse(""), Options { debug: false });
    }
}
