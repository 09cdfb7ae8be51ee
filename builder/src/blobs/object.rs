//! Where the bytes of blobs come from: files, or a server on a unix socket.
//!
//! Owns: opening an object by name, reading ranges. Does not own: what the bytes mean.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a server may stay silent.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest header of an answer, bytes.
const HEADER_MAX: u64 = 64 << 10;

/// Where the blobs of an image are.
#[derive(Clone, Debug)]
pub enum BlobPlace {
    /// In a directory, each under its id.
    Directory(PathBuf),
    /// In this file, whatever the id.
    File(PathBuf),
    /// Behind an HTTP server on a unix socket, which answers `HEAD` and `GET` with ranges for `PATH/ID`.
    HttpProxy {
        /// The socket.
        socket: PathBuf,
        /// What stands before the id in request paths.
        path: String,
    },
}

/// Something that ranges can be read of.
pub(crate) trait Object: std::fmt::Debug + Send + Sync {
    /// Bytes.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Object for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl BlobPlace {
    /// Opens the object `name`, and says what to call it in messages.
    pub(super) fn open(&self, name: &str) -> (PathBuf, io::Result<Box<dyn Object>>) {
        let file = |path: PathBuf| {
            let opened = File::open(&path).map(|file| Box::new(file) as Box<dyn Object>);
            (path, opened)
        };
        match self {
            Self::Directory(dir) => file(dir.join(name)),
            Self::File(path) => file(path.clone()),
            Self::HttpProxy { socket, path } => {
                let target = format!("{}/{name}", path.trim_end_matches('/'));
                let object = HttpObject { socket: socket.clone(), target };
                (socket.clone(), object.size().map(|_| Box::new(object) as Box<dyn Object>))
            }
        }
    }

    /// Opens a file beside the blobs, where these are files.
    pub(super) fn open_beside(&self, name: &str) -> (PathBuf, io::Result<Box<dyn Object>>) {
        match self {
            Self::File(path) => {
                Self::Directory(path.parent().unwrap_or_else(|| Path::new(".")).to_path_buf()).open(name)
            }
            other => other.open(name),
        }
    }
}

/// An object behind the server. Every request has a connection of its own.
#[derive(Debug)]
struct HttpObject {
    socket: PathBuf,
    target: String,
}

impl HttpObject {
    /// Sends a request; returns the length of the answer's body and what follows the header.
    fn ask(&self, method: &str, range: Option<(u64, u64)>) -> io::Result<(u64, u16, impl Read + use<>)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let range = range.map(|(first, last)| format!("Range: bytes={first}-{last}\r\n")).unwrap_or_default();
        write!(
            stream,
            "{method} {} HTTP/1.1\r\nHost: localhost\r\n{range}Connection: close\r\n\r\n",
            self.target
        )?;
        let mut reader = BufReader::new(stream);
        let bad =
            |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the server's answer {what}"));
        let mut line = String::new();
        let mut head = (&mut reader).take(HEADER_MAX);
        head.read_line(&mut line)?;
        let status: u16 =
            line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| bad("is no HTTP"))?;
        let mut length = None;
        loop {
            line.clear();
            if head.read_line(&mut line)? == 0 {
                return Err(bad("ends in its header"));
            }
            let header = line.trim_end();
            if header.is_empty() {
                break;
            }
            match header.split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().ok()
                }
                Some((name, _)) if name.eq_ignore_ascii_case("transfer-encoding") => {
                    return Err(bad("comes in chunks, which a range must not"));
                }
                _ => {}
            }
        }
        match status {
            200 | 206 => Ok((length.ok_or_else(|| bad("has no length"))?, status, reader)),
            404 => Err(io::ErrorKind::NotFound.into()),
            other => Err(bad(&format!("has status {other}"))),
        }
    }
}

impl Object for HttpObject {
    fn size(&self) -> io::Result<u64> {
        self.ask("HEAD", None).map(|(length, ..)| length)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let len = buffer.len() as u64;
        if len == 0 {
            return Ok(());
        }
        // A server may answer 200 to a range: the length tells whether it is the range.
        let (length, _, mut body) = self.ask("GET", Some((offset, offset + len - 1)))?;
        if length != len {
            let reason = format!("the server sent {length} bytes for a range of {len}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        body.read_exact(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn ranges_from_a_server_that_says_200() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let data: Vec<u8> = (0..=255).collect();
            let mut seen = Vec::new();
            for _ in 0..4 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while !request.ends_with("\r\n\r\n") {
                    reader.read_line(&mut request).unwrap();
                }
                seen.push(request.lines().next().unwrap().to_owned());
                let range =
                    request.lines().find_map(|line| line.strip_prefix("Range: bytes=")).map(str::to_owned);
                let body = match range.as_deref().and_then(|range| range.split_once('-')) {
                    None => &data[..],
                    Some((a, b)) => &data[a.parse::<usize>().unwrap()..=b.parse::<usize>().unwrap().min(255)],
                };
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).unwrap();
                if !request.starts_with("HEAD") {
                    stream.write_all(body).unwrap();
                }
            }
            seen
        });
        let place = BlobPlace::HttpProxy { socket, path: "/blobs".to_owned() };
        let object = place.open("id").1.unwrap();
        assert_eq!(object.size().unwrap(), 256);
        let mut buffer = [0; 3];
        object.read_exact_at(&mut buffer, 10).unwrap();
        assert_eq!(buffer, [10, 11, 12]);
        object.read_exact_at(&mut buffer, 255).unwrap_err();
        assert_eq!(
            server.join().unwrap(),
            [
                "HEAD /blobs/id HTTP/1.1",
                "HEAD /blobs/id HTTP/1.1",
                "GET /blobs/id HTTP/1.1",
                "GET /blobs/id HTTP/1.1"
            ]
        );
    }
}
