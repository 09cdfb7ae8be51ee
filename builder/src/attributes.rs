//! Attributes of paths, in the syntax of `.gitattributes`: which files are stored elsewhere (build-rules.md section 12).
//!
//! Owns: the syntax, matching paths, what an external file needs. Does not own: what becomes of such files.

use crate::options::ChunkSize;

/// Longest pattern, bytes.
const PATTERN_MAX: usize = 4096;
/// Most steps of matching one path: patterns with many stars would take very long otherwise.
const STEPS_MAX: u32 = 100_000;

/// Rules for paths, later ones winning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    pattern: Vec<u8>,
    /// Matched against the whole path; else against the last name only.
    anchored: bool,
    /// Name and value; `None` takes the attribute away.
    values: Vec<(String, Option<String>)>,
}

/// A file whose data is stored in an external store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalFile {
    /// Position of its blob among the external ones.
    pub blob_index: u32,
    /// Id of that blob.
    pub blob_id: String,
    /// Size of its chunks.
    pub chunk_size: ChunkSize,
    /// Where its first chunk starts in the blob.
    pub offset: u64,
    /// Bytes of the whole blob.
    pub blob_size: u64,
    /// CRC-32C of each chunk; empty when they are not known.
    pub crcs: Vec<u32>,
}

impl Attributes {
    /// Reads a text: a line a rule, `PATTERN NAME=VALUE ...`.
    ///
    /// # Errors
    /// The line at fault, and what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let mut rules = Vec::new();
        for (number, line) in (1..).zip(text.split(|b| *b == b'\n')) {
            let line = line.trim_ascii();
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            rules.push(rule(line).map_err(|reason| format!("line {number}: {reason}"))?);
        }
        Ok(Self { rules })
    }

    /// Whether there is no rule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether the file at `path`, which begins with a slash, is declared external.
    #[must_use]
    pub fn is_external(&self, path: &[u8]) -> bool {
        !self.rules.is_empty() && self.value(path, "type") == Some("external")
    }

    /// Where the data of the external file at `path` is. `None`: the file is not external.
    ///
    /// # Errors
    /// A sentence: something is missing or out of range.
    pub fn external(&self, path: &[u8]) -> Result<Option<ExternalFile>, String> {
        if !self.is_external(path) {
            return Ok(None);
        }
        let text = |name: &str| self.value(path, name);
        let needed = |name: &str| {
            text(name).ok_or_else(|| {
                format!(
                    "it is declared external without {name}: its data must be in an external blob already"
                )
            })
        };
        let blob_id = needed("blob_id")?.to_owned();
        if blob_id.is_empty() || blob_id.len() > 64 || blob_id.contains('/') {
            return Err(format!("blob_id {blob_id:?} has not 1 to 64 bytes, or has a slash"));
        }
        let number = |name: &str, value: &str| {
            size(value).ok_or_else(|| format!("{name} is {value:?}, which is no number of bytes"))
        };
        let chunk_size = number("chunk_size", needed("chunk_size")?)?;
        let chunk_size = ChunkSize::new(chunk_size).map_err(|e| e.to_string())?;
        let blob_index = number("blob_index", text("blob_index").unwrap_or("0"))?;
        Ok(Some(ExternalFile {
            blob_index: u32::try_from(blob_index)
                .ok()
                .filter(|index| *index < 255)
                .ok_or_else(|| format!("blob_index {blob_index} is not below 255"))?,
            blob_id,
            chunk_size,
            offset: number("chunk_0_compressed_offset", needed("chunk_0_compressed_offset")?)?,
            blob_size: number("compressed_size", needed("compressed_size")?)?,
            crcs: crcs(text("crcs").unwrap_or_default())?,
        }))
    }

    fn value(&self, path: &[u8], name: &str) -> Option<&str> {
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let matching = |rule: &&Rule| {
            let subject =
                if rule.anchored { path } else { path.rsplit(|b| *b == b'/').next().unwrap_or(path) };
            matches(&rule.pattern, subject)
        };
        let mut values = self.rules.iter().rev().filter(matching).flat_map(|rule| rule.values.iter().rev());
        values.find(|(known, _)| known == name).and_then(|(_, value)| value.as_deref())
    }
}

fn rule(line: &[u8]) -> Result<Rule, String> {
    let (pattern, rest) = if line.starts_with(b"\"") { quoted(line)? } else { word(line) };
    if pattern.is_empty() || pattern.len() > PATTERN_MAX {
        return Err(format!("a pattern has 1 to {PATTERN_MAX} bytes"));
    }
    if pattern.starts_with(b"[attr]") || pattern[0] == b'!' {
        return Err("macros ([attr]) and negative patterns (!) are not supported".to_owned());
    }
    if pattern.contains(&b'[') || pattern.contains(&b'\\') {
        return Err("patterns have *, ** and ?, but no [...] and no backslash here".to_owned());
    }
    let rest = std::str::from_utf8(rest).map_err(|_| "attributes are UTF-8 text".to_owned())?;
    let values = rest
        .split_ascii_whitespace()
        .map(|word| match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => match word.strip_prefix(['-', '!']) {
                Some(name) => (name.to_owned(), None),
                None => (word.to_owned(), Some(String::new())),
            },
        })
        .collect();
    let anchored = pattern.contains(&b'/');
    let pattern = pattern.strip_prefix(b"/").unwrap_or(&pattern).to_vec();
    Ok(Rule { pattern, anchored, values })
}

fn word(line: &[u8]) -> (Vec<u8>, &[u8]) {
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    let (word, rest) = line.split_at(end);
    (word.to_vec(), rest)
}

/// A pattern in quotes, with the escapes of C.
fn quoted(line: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let mut pattern = Vec::new();
    let mut at = 1;
    let unfinished = || "the quoted pattern does not end".to_owned();
    loop {
        let byte = *line.get(at).ok_or_else(unfinished)?;
        at += 1;
        match byte {
            b'"' => return Ok((pattern, line.get(at..).unwrap_or_default())),
            b'\\' => {
                let escaped = *line.get(at).ok_or_else(unfinished)?;
                at += 1;
                pattern.push(match escaped {
                    b't' => b'\t',
                    b'n' => b'\n',
                    b'"' => b'"',
                    b'0'..=b'3' => {
                        let digits =
                            line.get(at - 1..at + 2).and_then(|digits| std::str::from_utf8(digits).ok());
                        at += 2;
                        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
                        byte.ok_or_else(|| "a backslash and digits are three octal ones".to_owned())?
                    }
                    _ => return Err("only \\t, \\n, \\\" and three octal digits are escapes".to_owned()),
                });
            }
            other => pattern.push(other),
        }
    }
}

/// Whether `pattern` matches all of `subject`: `?` one byte but `/`, `*` any but `/`, `**` any.
fn matches(pattern: &[u8], subject: &[u8]) -> bool {
    fn at(pattern: &[u8], subject: &[u8], steps: &mut u32) -> bool {
        let (mut pattern, mut subject) = (pattern, subject);
        loop {
            *steps += 1;
            if *steps > STEPS_MAX {
                return false;
            }
            match (pattern.first(), subject.first()) {
                (None, rest) => return rest.is_none(),
                (Some(b'*'), _) => {
                    let stars = pattern.iter().take_while(|b| **b == b'*').count();
                    let deep = stars > 1;
                    let mut rest = &pattern[stars..];
                    // `a/**/b` is also `a/b`.
                    if deep && rest.first() == Some(&b'/') && at(&rest[1..], subject, steps) {
                        return true;
                    }
                    if rest.is_empty() {
                        return deep || !subject.contains(&b'/');
                    }
                    if deep && rest == b"/" {
                        rest = &[];
                    }
                    for end in 0..=subject.len() {
                        if at(rest, &subject[end..], steps) {
                            return true;
                        }
                        if *steps > STEPS_MAX || (!deep && subject.get(end) == Some(&b'/')) {
                            return false;
                        }
                    }
                    return false;
                }
                (Some(b'?'), Some(byte)) if *byte != b'/' => {}
                (Some(one), Some(other)) if one == other => {}
                _ => return false,
            }
            (pattern, subject) = (&pattern[1..], &subject[1..]);
        }
    }
    at(pattern, subject, &mut 0)
}

/// A number of bytes: decimal or `0x...`, perhaps with a unit (`4MiB`, `64K`).
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let end = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn crcs(text: &str) -> Result<Vec<u32>, String> {
    let parse = |crc: &str| {
        let digits = crc.trim();
        let digits = digits.strip_prefix("0x").unwrap_or(digits);
        u32::from_str_radix(digits, 16).map_err(|_| format!("crcs: {crc:?} is no CRC-32C in hexadecimal"))
    };
    text.split(',').filter(|crc| !crc.is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("/a/b", "/a/b", true),
            ("a/b", "/a/b", true),
            ("b", "/a/b", true),
            ("/b", "/a/b", false),
            ("*.bin", "/x/y/model.bin", true),
            ("/x/*.bin", "/x/y/model.bin", false),
            ("/x/**", "/x/y/model.bin", true),
            ("/x/**/model.bin", "/x/model.bin", true),
            ("/x/**/model.bin", "/x/a/b/model.bin", true),
            ("/x/**/model.bin", "/y/model.bin", false),
            ("model.???", "/model.bin", true),
            ("model.???", "/model.b/n", false),
            ("\"with\\040space\"", "/with space", true),
            ("*", "/any", true),
        ] {
            let attributes = Attributes::parse(format!("{pattern} type=external").as_bytes()).unwrap();
            assert_eq!(attributes.is_external(path.as_bytes()), expected, "{pattern} {path}");
        }
        let many = format!("/{} type=external", "*a".repeat(200));
        // Stars without end do not take time without end.
        let path = [&[b'a'; 3000][..], b"b"].concat();
        assert!(!Attributes::parse(many.as_bytes()).unwrap().is_external(&path));
    }

    #[test]
    fn later_rules_win_and_what_is_missing_is_said() {
        let id = "ab".repeat(32);
        let text = format!(
            "# model\n* type=external chunk_size=4MiB\n/m.bin blob_index=1 blob_id={id} chunk_0_compressed_offset=8192 \
             compressed_size=100MiB crcs=0x1,0xffffffff\n/small -type\n"
        );
        let attributes = Attributes::parse(text.as_bytes()).unwrap();
        let file = attributes.external(b"/m.bin").unwrap().unwrap();
        assert_eq!((file.blob_index, file.offset, file.blob_size), (1, 8192, 100 << 20));
        assert_eq!((file.chunk_size.get(), file.crcs), (4 << 20, vec![1, u32::MAX]));
        assert_eq!(attributes.external(b"/small"), Ok(None));
        assert!(attributes.external(b"/other").unwrap_err().contains("blob_id"));
        for bad in ["[attr]x y", "!a b", "\"a b", "a[b] x", "\"\\9\" x"] {
            assert!(Attributes::parse(bad.as_bytes()).unwrap_err().starts_with("line 1"), "{bad}");
        }
    }
}
