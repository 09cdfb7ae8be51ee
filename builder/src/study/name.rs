//! Names and link targets as text. They are bytes, and an image may choose them to deceive whoever reads a list.
//!
//! Owns: escaping for people and for JSON. Does not own: escaping for HTML, which the page does on top.

use serde_json::{Map, Value};
use std::fmt::{self, Write as _};

/// Shows bytes as one line of harmless text: what is no UTF-8 as `\xHH`, control and invisible characters and those
/// that change the direction of writing as `\u{H}`, a backslash doubled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.utf8_chunks() {
            for c in part.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    c if c.is_control() || is_invisible(c) => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                    c => f.write_char(c)?,
                }
            }
            for byte in part.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Characters without a shape of their own, or that move others about.
fn is_invisible(c: char) -> bool {
    matches!(u32::from(c),
        0xad | 0x34f | 0x61c | 0x115f | 0x1160 | 0x17b4 | 0x17b5 | 0x180b..=0x180f | 0x200b..=0x200f
        | 0x2028..=0x202e | 0x2060..=0x206f | 0x3164 | 0xfe00..=0xfe0f | 0xfeff | 0xffa0 | 0xfff0..=0xfffb
        | 0xe000..=0xf8ff | 0x1d173..=0x1d17a | 0xe0000..=0xe0fff | 0xf0000..=0x10ffff)
}

/// Puts a name into a JSON object: the exact text under `key` when it is UTF-8; else the text of [`Shown`], and the
/// bytes in hexadecimal under `KEY_hex`.
pub(crate) fn json_name(object: &mut Map<String, Value>, key: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            object.insert(key.to_owned(), text.into());
        }
        Err(_) => {
            object.insert(key.to_owned(), Shown(bytes).to_string().into());
            object.insert(format!("{key}_hex"), hex::encode(bytes).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_odd_gets_through() {
        for (bytes, text) in [
            (&b"plain name"[..], "plain name"),
            ("grün/名".as_bytes(), "grün/名"),
            (b"a\xffb\\", "a\\xffb\\\\"),
            (b"line\nbreak\x1b[31m", "line\\nbreak\\u{1b}[31m"),
            ("cod\u{202e}txt.exe".as_bytes(), "cod\\u{202e}txt.exe"),
            ("a\u{200b}b".as_bytes(), "a\\u{200b}b"),
        ] {
            assert_eq!(Shown(bytes).to_string(), text);
        }
    }

    #[test]
    fn json_keeps_the_bytes() {
        let mut object = Map::new();
        json_name(&mut object, "path", b"/ok\n");
        json_name(&mut object, "target", b"\xff");
        let text = serde_json::to_string(&object).unwrap();
        assert_eq!(text, r#"{"path":"/ok\n","target":"\\xff","target_hex":"ff"}"#);
    }
}
