//! A guest's text on its way to a log, a record or a terminal (pure).
//!
//! Control characters move cursors, and those that give text a direction or no width make it look like another. Both become `?`, as `ps` does it.

/// Left out at the end of what was longer.
const ELLIPSIS: char = '…';

/// `text` on one line without control characters, at most `max_bytes` long.
#[must_use]
pub fn clean(text: &str, max_bytes: usize) -> String {
    let mut cleaned = String::with_capacity(text.len().min(max_bytes));
    for character in text.chars() {
        let shown = if is_shown(character) { character } else { '?' };
        if cleaned.len() + shown.len_utf8() > max_bytes {
            shorten(&mut cleaned, max_bytes);
            return cleaned;
        }
        cleaned.push(shown);
    }
    cleaned
}

/// Makes room for the ellipsis, which says that something is missing.
fn shorten(text: &mut String, max_bytes: usize) {
    while text.len() + ELLIPSIS.len_utf8() > max_bytes {
        if text.pop().is_none() {
            return;
        }
    }
    text.push(ELLIPSIS);
}

/// Whether a character is what it looks like.
fn is_shown(character: char) -> bool {
    let misleads = matches!(
        character,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    );
    !character.is_control() && !misleads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_or_hides_is_shown_as_a_question_mark() {
        assert_eq!(clean("\x1b[2Ja\nb\r\x07\u{9b}c", 99), "?[2Ja?b???c");
        assert_eq!(clean("a\u{202e}b\u{200b}\u{feff}", 99), "a?b??");
        assert_eq!(clean("Zoë 中", 99), "Zoë 中");
    }

    #[test]
    fn it_is_never_longer_than_it_may_be_and_whole_characters_only() {
        assert_eq!(clean("abcdef", 6), "abcdef");
        assert_eq!(clean("abcdefg", 6), "abc…");
        let long = "中".repeat(1000);
        for max in 0..20 {
            let text = clean(&long, max);
            assert!(text.len() <= max, "{max}: {text}");
        }
    }
}
