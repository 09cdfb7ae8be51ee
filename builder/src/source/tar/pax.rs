//! pax extended header records.
//!
//! Owns: splitting records by their length field and the keys that images need. Does not own: which entry they
//! are for. Values may hold any byte, newlines and NULs included.

/// Most bytes of records for one entry: 64 KiB for each of many attributes, and room for paths.
pub(super) const SIZE_MAX: u64 = 16 << 20;

/// Prefix of the keys that hold extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What records say; `None` and empty where they say nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Whole seconds, rounded down.
    pub mtime: Option<i64>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pax {
    /// Adds the records in `bytes`; a key that comes again replaces the earlier value.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (key, value, next) = record(rest).ok_or("damaged pax record")?;
            self.set(key, value)?;
            rest = next;
        }
        // The last value of a name counts. Sorting keeps it quick, however many there are.
        self.xattrs.reverse();
        self.xattrs.sort_by(|a, b| a.0.cmp(&b.0));
        self.xattrs.dedup_by(|later, first| later.0 == first.0);
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"path" => self.path = some(value),
            b"linkpath" => self.link = some(value),
            b"size" => self.size = number(key, value)?,
            b"uid" => self.uid = number(key, value)?,
            b"gid" => self.gid = number(key, value)?,
            b"mtime" => self.mtime = seconds(value),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(
                    "GNU sparse entries are not supported: make the archive without --sparse".to_owned()
                );
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// An empty value takes back what a global header said.
fn some(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn number<T: std::str::FromStr>(key: &[u8], value: &[u8]) -> Result<Option<T>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    let shown = || (String::from_utf8_lossy(key).into_owned(), String::from_utf8_lossy(value).into_owned());
    parsed.map(Some).ok_or_else(|| {
        let (key, value) = shown();
        format!("pax {key} {value:?} is no number in range")
    })
}

/// Whole seconds of a decimal fraction; `None` for what is none, which leaves the header's time.
fn seconds(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let below = whole.starts_with('-') && fraction.bytes().any(|b| b != b'0');
    seconds.checked_sub(i64::from(below))
}

/// Splits off one record: `LENGTH KEY=VALUE\n`, where the length counts the whole record.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(len)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((&body[..equals], &body[equals + 1..], rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_any_bytes() {
        let mut pax = Pax::default();
        let mut bytes = b"30 SCHILY.xattr.user.a=x\ny=\0z\n".to_vec();
        assert_eq!(bytes.len(), 30);
        bytes.extend_from_slice(b"12 size=123\n10 path=a\n13 path=\xff/b\xfe\n");
        pax.add(&bytes).unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"x\ny=\0z".to_vec())]);
        assert_eq!((pax.size, pax.path.as_deref()), (Some(123), Some(&b"\xff/b\xfe"[..])));
    }

    #[test]
    fn the_last_value_of_a_name_counts() {
        let mut pax = Pax::default();
        let record = |name: &str, value: &str| format!("27 SCHILY.xattr.user.{name}={value}\n");
        let text = [record("aaa", "1"), record("bbb", "2"), record("aaa", "3")].concat();
        pax.add(text.as_bytes()).unwrap();
        pax.add(record("bbb", "4").as_bytes()).unwrap();
        let pair = |name: &str, value: &str| (format!("user.{name}").into_bytes(), value.as_bytes().to_vec());
        assert_eq!(pax.xattrs, [pair("aaa", "3"), pair("bbb", "4")]);
    }

    #[test]
    fn times_are_rounded_down() {
        for (text, expected) in [
            ("12", Some(12)),
            ("12.999", Some(12)),
            ("-1.5", Some(-2)),
            ("-1.000", Some(-1)),
            ("-0.5", Some(-1)),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(seconds(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn damaged_records_are_errors() {
        for bad in [
            &b"5 a=b\n"[..],
            b"99 a=b\n",
            b"x a=b\n",
            b"6 a=bX",
            b"6 abc\n",
            b"0 a=b\n",
            b"12 size=-12\n",
            b"10 uid=4x\n",
        ] {
            Pax::default().add(bad).unwrap_err();
        }
        Pax::default().add(b"27 GNU.sparse.realsize=123\n").unwrap_err();
    }
}
