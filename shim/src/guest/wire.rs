//! Protocol buffers as a hostile guest writes them, field by field and without a copy (pure).
//!
//! The generated readers take what comes: four MiB of empty messages become millions of structures, and fields that nobody knows are kept.
//! Here each field is looked at before anything is made of it, and one that is not known is an error: supervisor and agent are
//! built from one tree.

use super::{Malformed, Why};

/// One field's value; a 32-bit or 64-bit one of fixed width is in no message of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number.
    Number(u64),
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message, in their order.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
}

/// Bits of a byte of a number that count.
const GROUP_BITS: u32 = 7;

/// Bytes of a number of 64 bits.
const NUMBER_MAX_BYTES: usize = 10;

/// Bits of a field's tag that say its type.
const TYPE_BITS: u32 = 3;

impl<'a> Fields<'a> {
    /// Those of the message `what`.
    #[must_use]
    pub fn of(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    /// The next field's number and value; None at the end.
    ///
    /// # Errors
    ///
    /// It reaches beyond the end, or has a type that no message of ours has.
    pub fn next_field(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let value = match tag & ((1 << TYPE_BITS) - 1) {
            0 => Value::Number(self.number()?),
            2 => {
                let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
                let Some((bytes, rest)) = self.rest.split_at_checked(length) else {
                    return Err(self.malformed(Why::CutOff));
                };
                self.rest = rest;
                Value::Bytes(bytes)
            }
            _ => return Err(self.malformed(Why::Unknown)),
        };
        Ok(Some((tag >> TYPE_BITS, value)))
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        let mut number: u64 = 0;
        for (index, byte) in self.rest.iter().take(NUMBER_MAX_BYTES).enumerate() {
            let group = u64::from(byte & 0x7f);
            let shift = GROUP_BITS * u32::try_from(index).unwrap_or(u32::MAX);
            // The tenth byte has one bit.
            number |= group.checked_shl(shift).unwrap_or_default();
            if byte & 0x80 == 0 {
                self.rest = &self.rest[index + 1..];
                return Ok(number);
            }
        }
        Err(self.malformed(Why::CutOff))
    }

    /// An error about this message.
    #[must_use]
    pub fn malformed(&self, why: Why) -> Malformed {
        Malformed::new(self.what, why)
    }

    /// For a field that the message cannot have.
    #[must_use]
    pub fn unknown(&self) -> Malformed {
        self.malformed(Why::Unknown)
    }

    /// A field's text, of any length.
    ///
    /// # Errors
    ///
    /// It is not UTF-8.
    pub fn text(&self, bytes: &'a [u8]) -> Result<&'a str, Malformed> {
        std::str::from_utf8(bytes).map_err(|_| self.malformed(Why::Text))
    }

    /// A field's text, which is a name: not longer than `max_bytes`.
    ///
    /// # Errors
    ///
    /// It is longer, or not UTF-8.
    pub fn name(&self, bytes: &'a [u8], max_bytes: usize) -> Result<&'a str, Malformed> {
        if bytes.len() > max_bytes {
            return Err(self.malformed(Why::TooMuch));
        }
        self.text(bytes)
    }

    /// A number of 32 bits.
    ///
    /// # Errors
    ///
    /// It has more.
    pub fn short(&self, number: u64) -> Result<u32, Malformed> {
        u32::try_from(number).map_err(|_| self.malformed(Why::TooMuch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u64, Value<'_>)>, Malformed> {
        let mut fields = Fields::of("a message", bytes);
        let mut found = Vec::new();
        while let Some(field) = fields.next_field()? {
            found.push(field);
        }
        Ok(found)
    }

    #[test]
    fn fields_are_read_in_order() {
        let bytes = [0x08, 0xac, 0x02, 0x12, 0x02, b'h', b'i', 0x1a, 0];
        let expected = [
            (1, Value::Number(300)),
            (2, Value::Bytes(b"hi")),
            (3, Value::Bytes(b"")),
        ];
        assert_eq!(all(&bytes).unwrap(), expected);
        assert_eq!(all(&[]).unwrap(), []);
    }

    #[test]
    fn what_reaches_beyond_the_end_is_no_message() {
        for bytes in [
            &[0x08][..],
            &[0x08, 0x80],
            &[0x12, 3, b'h', b'i'],
            &[
                0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
            &[0xff; 11],
        ] {
            let error = all(bytes).unwrap_err();
            assert_eq!(error.why(), Why::CutOff, "{bytes:x?}");
        }
        // A group, and a number of fixed width.
        for bytes in [&[0x0b][..], &[0x09, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(all(bytes).unwrap_err().why(), Why::Unknown, "{bytes:x?}");
        }
    }
}
