//! Just enough HTTP/1.1 for a test server: requests in, responses out.

use std::io::{self, BufRead, Read, Write};

/// Longest line and most lines of a request's head.
const LINE_MAX: u64 = 16 << 10;
const LINES_MAX: usize = 100;

/// A request.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `GET`.
    pub method: String,
    /// Path and query as they were sent; of an absolute URL too.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// Reads one; `None` at the end of the connection.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let Some(first) = line(from)? else { return Ok(None) };
        let mut words = first.split(' ');
        let mut request = Self {
            method: words.next().unwrap_or_default().to_owned(),
            target: words.next().unwrap_or_default().to_owned(),
            ..Self::default()
        };
        // A proxy is asked for whole URLs.
        if let Some((_, rest)) = request.target.split_once("://") {
            request.target = rest.find('/').map_or("/", |at| &rest[at..]).to_owned();
        }
        while let Some(text) = line(from)?.filter(|text| !text.is_empty()) {
            let (name, value) = text.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
            request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            if request.headers.len() > LINES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        let length = request.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
        from.take(length).read_to_end(&mut request.body)?;
        Ok(Some(request))
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The path, without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A parameter of the query, as it was sent.
    pub fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// First byte and one past the last of `Range: bytes=a-b`.
    pub fn range(&self) -> Option<(u64, u64)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?))
    }
}

fn line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut text = String::new();
    from.take(LINE_MAX).read_line(&mut text)?;
    if text.is_empty() {
        return Ok(None);
    }
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// The head of a response.
#[derive(Clone, Debug)]
pub struct Head {
    status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut text = format!("HTTP/1.1 {} Status\r\n", self.status);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        to.write_all((text + "\r\n").as_bytes())
    }

    /// With a small body.
    pub fn write_with(self, body: &str, to: &mut impl Write) -> io::Result<()> {
        self.with("Content-Length", body.len()).write(to)?;
        to.write_all(body.as_bytes())
    }
}
