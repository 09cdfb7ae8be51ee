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

/// Parses a size in bytes that is hexadecimal with or without `0x`.
pub(super) fn parse_hex(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map_err(|_| format!("{text:?} is no size: write it hexadecimal, such as 0x1f00"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn decimal_and_hexadecimal() {
        assert_eq!(super::parse("4096"), Ok(4096));
        assert_eq!(super::parse("0x1000"), Ok(4096));
        assert_eq!(super::parse_hex("ff"), Ok(255));
        assert_eq!(super::parse_hex("0x10"), Ok(16));
        super::parse_hex("0x1g").unwrap_err();
        for bad in ["", "-1", "0x", "4k", "1e3"] {
            assert!(super::parse(bad).is_err(), "{bad}");
        }
    }
}
