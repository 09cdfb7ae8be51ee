//! What a file is, told from its name and mode: a report reads no data.
//!
//! Owns: the classes and which endings belong to them. Does not own: counting.

/// Classes of files. The numbers are the colours of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Class {
    Program,
    Library,
    Source,
    Text,
    Data,
    Archive,
    Media,
    Font,
    Bytecode,
    Other,
}

impl Class {
    pub(super) const ALL: [Self; 10] = [
        Self::Program,
        Self::Library,
        Self::Source,
        Self::Text,
        Self::Data,
        Self::Archive,
        Self::Media,
        Self::Font,
        Self::Bytecode,
        Self::Other,
    ];

    /// Position in [`Class::ALL`].
    pub(super) fn number(self) -> u8 {
        Self::ALL.iter().zip(0..).find(|(class, _)| **class == self).map_or(9, |(_, n)| n)
    }

    /// What the page calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Program => "programs",
            Self::Library => "libraries",
            Self::Source => "source code",
            Self::Text => "text",
            Self::Data => "data",
            Self::Archive => "archives",
            Self::Media => "media",
            Self::Font => "fonts",
            Self::Bytecode => "bytecode",
            Self::Other => "other",
        }
    }
}

/// Longest ending that counts as one, bytes.
const ENDING_MAX: usize = 10;

/// Class and ending (lower case, without the dot) of a file; the ending is empty when there is none.
pub(super) fn of(name: &[u8], mode: u32) -> (Class, Vec<u8>) {
    let ending = ending(name);
    let class = match &ending[..] {
        b"so" | b"a" | b"o" | b"dll" | b"dylib" | b"ko" | b"rlib" => Class::Library,
        b"exe" | b"bin" | b"sh" | b"bash" | b"appimage" => Class::Program,
        b"py" | b"rs" | b"c" | b"h" | b"cc" | b"cpp" | b"hpp" | b"js" | b"mjs" | b"ts" | b"tsx" | b"jsx"
        | b"go" | b"java" | b"rb" | b"pl" | b"pm" | b"php" | b"lua" | b"tcl" | b"el" | b"scm" | b"css"
        | b"scss" | b"vue" | b"r" | b"pyi" | b"cmake" | b"m4" | b"sql" => Class::Source,
        b"txt" | b"md" | b"rst" | b"html" | b"htm" | b"xml" | b"json" | b"yaml" | b"yml" | b"toml"
        | b"conf" | b"cfg" | b"ini" | b"csv" | b"tsv" | b"log" | b"po" | b"pot" | b"tex" | b"desktop"
        | b"service" | b"list" | b"properties" | b"map" | b"svg" | b"pem" | b"crt" => Class::Text,
        b"db" | b"sqlite" | b"sqlite3" | b"dat" | b"idx" | b"pak" | b"npy" | b"h5" | b"parquet" | b"onnx"
        | b"safetensors" | b"pt" | b"pth" | b"gguf" | b"mo" | b"cache" | b"rdb" | b"bdb" | b"model"
        | b"pb" => Class::Data,
        b"gz" | b"xz" | b"bz2" | b"zst" | b"zip" | b"tar" | b"tgz" | b"7z" | b"deb" | b"rpm" | b"jar"
        | b"war" | b"whl" | b"apk" | b"egg" | b"lz4" | b"rar" | b"squashfs" | b"iso" => Class::Archive,
        b"png" | b"jpg" | b"jpeg" | b"gif" | b"webp" | b"ico" | b"bmp" | b"tiff" | b"mp3" | b"ogg"
        | b"wav" | b"flac" | b"mp4" | b"webm" | b"mkv" | b"avi" | b"mov" | b"pdf" | b"ps" | b"eps" => {
            Class::Media
        }
        b"ttf" | b"otf" | b"woff" | b"woff2" | b"pfb" | b"pcf" => Class::Font,
        b"pyc" | b"pyo" | b"class" | b"elc" | b"wasm" | b"beam" | b"dex" => Class::Bytecode,
        b"" if mode & 0o111 != 0 => Class::Program,
        _ => Class::Other,
    };
    (class, ending)
}

/// `libc.so.6` ends in `so`, `README` in nothing.
fn ending(name: &[u8]) -> Vec<u8> {
    let mut rest = name;
    while let Some(dot) = rest.iter().rposition(|b| *b == b'.').filter(|dot| *dot > 0) {
        let ending = &rest[dot + 1..];
        if !ending.is_empty() && ending.iter().all(u8::is_ascii_digit) {
            // A version: what stands before it decides.
            rest = &rest[..dot];
            continue;
        }
        let usable = !ending.is_empty()
            && ending.len() <= ENDING_MAX
            && ending.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+'));
        return if usable { ending.to_ascii_lowercase() } else { Vec::new() };
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_and_classes() {
        for (name, mode, class, end) in [
            (&b"libc.so.6"[..], 0o755, Class::Library, &b"so"[..]),
            (b"bash", 0o755, Class::Program, b""),
            (b"README", 0o644, Class::Other, b""),
            (b".bashrc", 0o644, Class::Other, b""),
            (b"Photo.JPG", 0o644, Class::Media, b"jpg"),
            (b"x.</script>", 0o644, Class::Other, b""),
            (b"1.2.3", 0o644, Class::Other, b""),
            (b"trailing.", 0o644, Class::Other, b""),
        ] {
            assert_eq!(of(name, mode), (class, end.to_vec()), "{}", String::from_utf8_lossy(name));
        }
        for class in Class::ALL {
            assert_eq!(Class::ALL[usize::from(class.number())], class);
        }
    }
}
