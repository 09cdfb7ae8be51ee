//! Sizes on the command line: decimal, or hexadecimal with `0x`.

/// Parses a size in bytes.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is no size in bytes: write it decimal, or hexadecimal with 0x"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn decimal_and_hexadecimal() {
        assert_eq!(super::parse("4096"), Ok(4096));
        assert_eq!(super::parse("0x1000"), Ok(4096));
        for bad in ["", "-1", "0x", "4k", "1e3"] {
            assert!(super::parse(bad).is_err(), "{bad}");
        }
    }
}
