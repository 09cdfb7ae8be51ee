//! The value of `--chunk-dict`.

use std::path::PathBuf;

/// Parses `bootstrap=PATH` or `PATH`.
pub(super) fn parse(text: &str) -> Result<PathBuf, String> {
    match text.split_once('=') {
        Some(("bootstrap", path)) if !path.is_empty() => Ok(path.into()),
        Some((kind, _)) if !kind.contains('/') => {
            Err(format!("invalid chunk dict type {kind}: write bootstrap=FILE"))
        }
        _ if text.is_empty() => Err("the name of the dictionary is empty".to_owned()),
        _ => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn both_forms() {
        assert_eq!(parse("bootstrap=/a/b"), Ok("/a/b".into()));
        assert_eq!(parse("/a/b"), Ok("/a/b".into()));
        assert_eq!(parse("/a=c/b"), Ok("/a=c/b".into()));
        assert!(parse("database=x").unwrap_err().contains("invalid chunk dict type database"));
        parse("bootstrap=").unwrap_err();
    }
}
