//! A server of blobs in a folder, shaped like a registry, an S3 or OSS bucket, or plain HTTP, with latency, limited
//! bandwidth and faults as a test wants them. A thread a connection.
//!
//! The last segment of a path, without `sha256:`, names a file. `/token` gives tokens, `/ping` says whether the server is
//! well, `/raw/...` is where redirects lead.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::net::sockopt::set_socket_linger;

use super::faults::Fault;
use super::http::{Head, Request};
use super::signatures;
use crate::support::random::Random;

/// What [`Fault::WiderRange`] answers whole ones of.
const PAGE: u64 = 4096;

/// Who may read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    #[default]
    Open,
    /// `Authorization: Basic` with this base64 of user and password.
    Basic(String),
    /// Bearer tokens that `/token` gives to those with this base64, or to everybody.
    Bearer {
        /// base64 of user and password.
        auth: Option<String>,
        /// Life of a token.
        life: Duration,
        /// What `/token` answers to POST, if not a token.
        refuses_post: Option<u16>,
    },
    /// One fixed Bearer token.
    Token(String),
    /// AWS signature version 4 for a region, with an access key and its secret.
    S3(String, String, String),
    /// OSS signature version 1 for a bucket, with an access key and its secret.
    OssV1(String, String, String),
    /// OSS signature version 4: bucket, region, access key, secret.
    OssV4(String, String, String, String),
}

/// How it behaves from now on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Requests are read and not answered until this is taken back.
    pub held: bool,
    /// Before each response.
    pub latency: Duration,
    /// Bytes a second over all connections; 0 for no limit.
    pub bandwidth: u64,
    /// What may go wrong with a request for a blob.
    pub faults: Vec<Fault>,
    /// With how many of a hundred such requests.
    pub fault_percent: u64,
    /// How long [`Fault::Stall`] lasts.
    pub stall: Duration,
    /// Who may read.
    pub access: Access,
    /// Blobs are elsewhere: `http://HOST:PORT`, and for how long a location is good.
    pub redirect: Option<(String, Duration)>,
    /// Locations say when they end.
    pub redirect_says_expiry: bool,
    /// Every connection is closed at once.
    pub down: bool,
    /// What `/ping` answers.
    pub ping_status: u16,
    /// Answered to every request for a blob, with these headers.
    pub always: Option<(u16, Vec<(String, String)>)>,
    /// Ranges are answered with 200 and the range.
    pub sloppy: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            held: false,
            latency: Duration::ZERO,
            bandwidth: 0,
            faults: Vec::new(),
            fault_percent: 0,
            stall: Duration::from_secs(2),
            access: Access::Open,
            redirect: None,
            redirect_says_expiry: false,
            down: false,
            ping_status: 200,
            always: None,
            sloppy: false,
        }
    }
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Record {
    /// When its head had been read.
    pub at: Instant,
    /// `GET`, `HEAD`, `POST`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers; names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body of a POST.
    pub body: String,
    /// The status answered, 0 for none.
    pub status: u16,
}

impl Record {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// The server; it ends when dropped.
#[derive(Debug)]
pub struct BlobServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    settings: Mutex<Settings>,
    records: Mutex<Vec<Record>>,
    random: Mutex<Random>,
    tokens: Mutex<Vec<(String, Instant)>>,
    paid: Mutex<Instant>,
    stopped: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    port: Mutex<u16>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlobServer {
    /// Serves the files in `dir` on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// No port.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_on(dir, 0)
    }

    /// Serves on a given port, to come back after having been gone.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start_on(dir: &Path, port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("binding a port")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            settings: Mutex::default(),
            records: Mutex::default(),
            random: Mutex::new(Random::new(4)),
            tokens: Mutex::default(),
            paid: Mutex::new(Instant::now()),
            stopped: AtomicBool::new(false),
            connections: Mutex::default(),
            port: Mutex::new(address.port()),
        });
        let accepting = Arc::clone(&shared);
        let accepting = std::thread::Builder::new().name("blob-server".into()).spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                if let Ok(copy) = stream.try_clone() {
                    lock(&shared.connections).push(copy);
                }
                std::thread::spawn(move || {
                    // An error is the end of a connection, which is all there is to it.
                    let _ = shared.serve(&stream);
                    let _ = stream.shutdown(Shutdown::Both);
                    let peer = stream.peer_addr().ok();
                    lock(&shared.connections).retain(|c| c.peer_addr().ok() != peer);
                });
            }
        })?;
        Ok(Self { shared, address, accepting: Some(accepting) })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes how it behaves.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut lock(&self.shared.settings));
    }

    /// The requests so far.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        lock(&self.shared.records).clone()
    }

    /// Forgets them.
    pub fn forget_records(&self) {
        lock(&self.shared.records).clear();
    }

    /// Tokens that were given are no longer good.
    pub fn revoke_tokens(&self) {
        lock(&self.shared.tokens).clear();
    }
}

impl Drop for BlobServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for connection in lock(&self.shared.connections).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Wakes the accepting thread; it may be gone already.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(request) = Request::read(&mut reader)? {
            let settings = lock(&self.settings).clone();
            if settings.down || self.stopped.load(Ordering::SeqCst) {
                return reset(stream);
            }
            let index = {
                let mut records = lock(&self.records);
                records.push(Record {
                    at: Instant::now(),
                    method: request.method.clone(),
                    target: request.target.clone(),
                    headers: request.headers.clone(),
                    body: String::from_utf8_lossy(&request.body).into_owned(),
                    status: 0,
                });
                records.len() - 1
            };
            while lock(&self.settings).held && !self.stopped.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(settings.latency);
            let status = self.answer(&request, &settings, stream)?;
            if let Some(record) = lock(&self.records).get_mut(index) {
                record.status = status;
            }
        }
        Ok(())
    }

    fn answer(&self, request: &Request, settings: &Settings, mut stream: &TcpStream) -> io::Result<u16> {
        match request.path() {
            "/ping" => return status_only(settings.ping_status, stream),
            "/token" => return self.token(request, settings, stream),
            _ => {}
        }
        if let Some((status, headers)) = &settings.always {
            let head = headers.iter().fold(Head::new(*status), |head, (name, value)| head.with(name, value));
            head.write_with("", &mut stream)?;
            return Ok(*status);
        }
        let raw = request.path().starts_with("/raw/");
        if raw && !still_good(request) {
            return status_only(403, stream);
        }
        if !raw && let Some(refusal) = self.refusal(request, &settings.access) {
            let (status, challenge) = refusal;
            let head = Head::new(status);
            let head = challenge.into_iter().fold(head, |head, c| head.with("WWW-Authenticate", c));
            head.write_with("", &mut stream)?;
            return Ok(status);
        }
        let name = request.path().rsplit('/').next().unwrap_or_default();
        let name = name.strip_prefix("sha256:").unwrap_or(name);
        if !raw && let Some((base, life)) = &settings.redirect {
            let ends = unix_now().saturating_add(life.as_millis());
            let expiry = if settings.redirect_says_expiry {
                format!("&Expires={}", ends / 1000)
            } else {
                String::new()
            };
            let location = format!("{base}/raw/{name}?ends={ends}{expiry}&sig=secret");
            Head::new(307).with("Location", location).write_with("", &mut stream)?;
            return Ok(307);
        }
        let fault = Fault::draw(&settings.faults, settings.fault_percent, &mut lock(&self.random));
        let Ok(file) = File::open(self.dir.join(name)) else { return status_only(404, stream) };
        self.blob(request, settings, fault, &file, stream)
    }

    fn blob(
        &self,
        request: &Request,
        settings: &Settings,
        fault: Option<Fault>,
        file: &File,
        mut stream: &TcpStream,
    ) -> io::Result<u16> {
        let size = file.metadata()?.len();
        let (start, end) = match request.range() {
            Some(range) if fault != Some(Fault::IgnoreRange) => range,
            _ => (0, size),
        };
        let ranged = request.range().is_some() && fault != Some(Fault::IgnoreRange);
        if start >= size && size > 0 {
            return status_only(416, stream);
        }
        let (start, end) = match fault {
            Some(Fault::WiderRange) => (start / PAGE * PAGE, end.next_multiple_of(PAGE)),
            _ => (start, end),
        };
        let end = end.min(size);
        let length = end - start;
        match fault {
            Some(Fault::Status(status)) => return status_only(status, stream),
            Some(Fault::Reset) => {
                reset(stream)?;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            Some(Fault::Garbage) => {
                stream.write_all(b"\x16\x03\x01 what?\r\n\r\n")?;
                return Err(io::ErrorKind::InvalidData.into());
            }
            Some(Fault::Stall) => {
                std::thread::sleep(settings.stall);
                return Err(io::ErrorKind::TimedOut.into());
            }
            Some(Fault::Late) => std::thread::sleep(settings.stall / 2),
            Some(Fault::ExpiredLocation) => {
                let location = format!("http://127.0.0.1:{}/raw/x?ends=1&sig=secret", lock(&self.port));
                Head::new(307).with("Location", location).write_with("", &mut stream)?;
                return Ok(307);
            }
            _ => {}
        }
        let status = if ranged && !settings.sloppy { 206 } else { 200 };
        let mut head = Head::new(status).with("Accept-Ranges", "bytes");
        if status == 206 {
            let (shift, total) = match fault {
                Some(Fault::OtherRange) => (1, size + 1),
                Some(Fault::ShortTotal) => (0, end - 1),
                _ => (0, size),
            };
            head = head.with("Content-Range", format!("bytes {}-{}/{total}", start + shift, end - 1 + shift));
        }
        if fault == Some(Fault::Endless) {
            head.with("Transfer-Encoding", "chunked").write(&mut stream)?;
            // Bounded so that a client that swallows it does not keep the test running.
            for _ in 0..(64 << 10) {
                stream.write_all(b"1000\r\n")?;
                stream.write_all(&[b'x'; 0x1000])?;
                stream.write_all(b"\r\n")?;
            }
            return Err(io::ErrorKind::InvalidData.into());
        }
        let announced = if fault == Some(Fault::ShortLength) { length.saturating_sub(1) } else { length };
        head.with("Content-Length", announced).write(&mut stream)?;
        if request.method == "HEAD" {
            return Ok(status);
        }
        let cut = matches!(fault, Some(Fault::Truncate | Fault::StallInBody));
        let stop = if cut { start + length.div_ceil(2) } else { start + announced };
        let mut at = start;
        let mut piece = vec![0; 16 << 10];
        if fault == Some(Fault::Trickle) {
            piece.truncate(usize::try_from(length.div_ceil(8)).unwrap_or(1).clamp(1, 16 << 10));
        }
        if fault == Some(Fault::Slow) {
            piece.truncate(2 << 10);
        }
        while at < stop {
            let n = usize::try_from(stop - at).unwrap_or(usize::MAX).min(piece.len());
            file.read_exact_at(&mut piece[..n], at)?;
            if fault == Some(Fault::Corrupt) {
                piece[n / 2] ^= 0x55;
            }
            if fault == Some(Fault::Trickle) {
                std::thread::sleep(settings.stall / 16);
            }
            if fault == Some(Fault::Slow) {
                std::thread::sleep(Duration::from_nanos(n as u64 * 1_000_000_000 / Fault::SLOW));
            }
            self.pay(n, settings.bandwidth);
            stream.write_all(&piece[..n])?;
            at += n as u64;
        }
        if fault == Some(Fault::StallInBody) {
            std::thread::sleep(settings.stall);
        }
        if cut {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(status)
    }

    /// Waits until the line has room for `bytes`.
    fn pay(&self, bytes: usize, bandwidth: u64) {
        if bandwidth == 0 {
            return;
        }
        let cost = Duration::from_nanos(bytes as u64 * 1_000_000_000 / bandwidth);
        let until = {
            let mut paid = lock(&self.paid);
            *paid = (*paid).max(Instant::now()) + cost;
            *paid
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }

    /// Why a request is refused: status and challenge.
    fn refusal(&self, request: &Request, access: &Access) -> Option<(u16, Option<String>)> {
        let given = request.header("authorization").unwrap_or_default();
        let signed = |good: bool| if good { None } else { Some((403, None)) };
        match access {
            Access::Open => None,
            Access::Basic(auth) => {
                (given != format!("Basic {auth}")).then(|| (401, Some("Basic realm=\"test\"".to_owned())))
            }
            Access::Token(token) => {
                (given != format!("Bearer {token}")).then(|| (401, Some("Basic realm=\"test\"".to_owned())))
            }
            Access::Bearer { .. } => {
                let token = given.strip_prefix("Bearer ").unwrap_or_default();
                let good = lock(&self.tokens).iter().any(|(t, ends)| t == token && Instant::now() < *ends);
                let port = *lock(&self.port);
                let challenge = format!(
                    "Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"svc\",scope=\"repository:a/b:pull\""
                );
                (!good).then_some((401, Some(challenge)))
            }
            Access::S3(region, key, secret) => signed(signatures::s3(request, region, key, secret)),
            Access::OssV1(bucket, key, secret) => signed(signatures::oss_v1(request, bucket, key, secret)),
            Access::OssV4(bucket, region, key, secret) => {
                signed(signatures::oss_v4(request, bucket, region, key, secret))
            }
        }
    }

    fn token(&self, request: &Request, settings: &Settings, mut stream: &TcpStream) -> io::Result<u16> {
        let Access::Bearer { auth, life, refuses_post } = &settings.access else {
            return status_only(404, stream);
        };
        if let Some(status) = refuses_post.filter(|_| request.method == "POST") {
            return status_only(status, stream);
        }
        let asked = if request.method == "POST" {
            String::from_utf8_lossy(&request.body).into_owned()
        } else {
            request.target.clone()
        };
        let complete = ["service=svc", "scope=repository%3Aa%2Fb%3Apull", "client_id=nydus-registry-client"];
        if !complete.iter().all(|part| asked.contains(part)) {
            return status_only(400, stream);
        }
        if auth.as_ref().is_some_and(|auth| request.header("authorization") != Some(&format!("Basic {auth}")))
        {
            return status_only(401, stream);
        }
        let token = format!("T{}", lock(&self.random).next());
        lock(&self.tokens).push((token.clone(), Instant::now() + *life));
        let body = format!("{{\"token\":\"{token}\",\"expires_in\":{}}}", life.as_secs());
        Head::new(200).with("Content-Type", "application/json").write_with(&body, &mut stream)?;
        Ok(200)
    }
}

fn unix_now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis())
}

/// Whether a location of ours has not expired.
fn still_good(request: &Request) -> bool {
    request.query("ends").and_then(|ends| ends.parse().ok()).is_none_or(|ends: u128| unix_now() < ends)
}

fn status_only(status: u16, mut stream: &TcpStream) -> io::Result<u16> {
    Head::new(status).write_with("", &mut stream)?;
    Ok(status)
}

/// Closes so that the peer gets a reset.
fn reset(stream: &TcpStream) -> io::Result<()> {
    set_socket_linger(stream, Some(Duration::ZERO))?;
    stream.shutdown(Shutdown::Both)
}
