//! A server that answers what it was told to, path by path: registries that lie.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::http::{Head, Request};

/// What is answered at a path.
#[derive(Clone, Debug)]
pub enum Canned {
    /// These bytes, or the part of them that is asked for.
    Bytes(Vec<u8>),
    /// Go there.
    Redirect(String),
    /// So many zeros.
    Zeros(u64),
}

/// The server; its threads end with the test's process.
#[derive(Debug)]
pub struct CannedServer {
    /// `127.0.0.1:PORT`.
    pub host: String,
}

impl CannedServer {
    /// Answers on a free port of 127.0.0.1; what is not there is 404.
    ///
    /// # Errors
    /// No port.
    pub fn start(answers: HashMap<String, Canned>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("binding a port")?;
        let host = listener.local_addr()?.to_string();
        let answers = Arc::new(answers);
        std::thread::Builder::new().name("canned".into()).spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let answers = Arc::clone(&answers);
                std::thread::spawn(move || drop(serve(&stream, &answers)));
            }
        })?;
        Ok(Self { host })
    }
}

fn serve(stream: &TcpStream, answers: &HashMap<String, Canned>) -> io::Result<()> {
    let (mut from, mut to) = (BufReader::new(stream), stream);
    while let Some(request) = Request::read(&mut from)? {
        match answers.get(request.path()) {
            None => Head::new(404).write_with("", &mut to)?,
            Some(Canned::Redirect(location)) => {
                Head::new(307).with("Location", location).write_with("", &mut to)?;
            }
            Some(Canned::Zeros(len)) => {
                Head::new(200).with("Content-Length", len).write(&mut to)?;
                io::copy(&mut io::Read::take(io::repeat(0), *len), &mut to)?;
            }
            Some(Canned::Bytes(bytes)) => {
                let part = request.range().and_then(|(from, to)| {
                    let range = usize::try_from(from).ok()?..usize::try_from(to).ok()?.min(bytes.len());
                    Some((from, bytes.get(range)?))
                });
                let (head, part) = match part {
                    Some((from, part)) => {
                        let last = from + part.len() as u64 - 1;
                        let range = format!("bytes {from}-{last}/{}", bytes.len());
                        (Head::new(206).with("Content-Range", range), part)
                    }
                    None => (Head::new(200), bytes.as_slice()),
                };
                head.with("Content-Length", part.len()).write(&mut to)?;
                if request.method != "HEAD" {
                    to.write_all(part)?;
                }
            }
        }
    }
    Ok(())
}
