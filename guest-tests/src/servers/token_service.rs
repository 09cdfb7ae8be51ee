//! A token service as `docker-registry` wants one: it signs JSON Web Tokens (RS256) with a key of its own, whose
//! certificate the registry is given. `openssl` makes the key and the signatures.

use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tempfile::TempDir;

use super::debian::run;
use super::http::{Head, Request};

/// The registry goes on taking a token for so long after its end (`Leeway` in its sources), so tokens of a short life
/// are signed as if they had ended already.
const LEEWAY: u64 = 60;

/// Who gets tokens, and which.
#[derive(Clone, Debug)]
pub struct TokenSettings {
    /// base64 of the user and password that must be shown; nobody else gets a token.
    pub auth: Option<String>,
    /// How long the registry takes a token.
    pub life: Duration,
    /// What `expires_in` says; left out if `None`.
    pub says: Option<u64>,
    /// What a token allows in the repository that was asked for.
    pub actions: Vec<String>,
    /// POST is answered with 405.
    pub refuses_post: bool,
    /// Answered to every request, in place of a token.
    pub always: Option<u16>,
}

/// The service; it ends when dropped.
#[derive(Debug)]
pub struct TokenService {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    dir: TempDir,
    /// The certificate as it stands in a token's header: base64 of its DER form.
    certificate: String,
    settings: Mutex<TokenSettings>,
    asked: Mutex<Vec<String>>,
    stopped: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TokenService {
    /// What tokens say of who made them; the registry's configuration says the same.
    pub const ISSUER: &'static str = "issuer of tests";
    /// Name of the registry in tokens and challenges.
    pub const SERVICE: &'static str = "registry of tests";

    /// Makes a key and gives tokens on a free port of 127.0.0.1: to everybody, for reading, good for five minutes.
    ///
    /// # Errors
    /// No port, or no `openssl`.
    pub fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut openssl = Command::new("openssl");
        openssl.current_dir(dir.path()).args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        run(openssl.args(["-subj", "/CN=issuer", "-keyout", "key.pem", "-out", "certificate.pem"]))?;
        let pem = std::fs::read_to_string(dir.path().join("certificate.pem"))?;
        let certificate = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let settings = TokenSettings {
            auth: None,
            life: Duration::from_secs(300),
            says: Some(300),
            actions: vec!["pull".into()],
            refuses_post: false,
            always: None,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("binding a port")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            dir,
            certificate,
            settings: Mutex::new(settings),
            asked: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let accepting = std::thread::Builder::new().name("token-service".into()).spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if of_thread.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&of_thread);
                // An error is the end of a connection, which is all there is to it.
                std::thread::spawn(move || drop(shared.serve(&stream)));
            }
        })?;
        Ok(Self { shared, address, accepting: Some(accepting) })
    }

    /// Where tokens are asked for.
    #[must_use]
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// The certificate that tokens are checked with, PEM.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.shared.dir.path().join("certificate.pem")
    }

    /// Changes how it behaves.
    pub fn set(&self, change: impl FnOnce(&mut TokenSettings)) {
        change(&mut lock(&self.shared.settings));
    }

    /// What was asked, a method and the parameters each.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        lock(&self.shared.asked).clone()
    }

    /// A token of five minutes for some actions in a repository.
    ///
    /// # Errors
    /// When `openssl` does not sign.
    pub fn token(&self, repository: &str, actions: &[&str]) -> Result<String> {
        let actions: Vec<String> = actions.iter().map(|&action| action.to_owned()).collect();
        self.shared.sign(repository, &actions, Duration::from_secs(300))
    }
}

impl Drop for TokenService {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let (mut from, mut to) = (BufReader::new(stream), stream);
        while let Some(request) = Request::read(&mut from)? {
            let (status, body) = self.answer(&request);
            Head::new(status).with("Content-Type", "application/json").write_with(&body, &mut to)?;
        }
        Ok(())
    }

    fn answer(&self, request: &Request) -> (u16, String) {
        let by_post = request.method == "POST";
        let body = String::from_utf8_lossy(&request.body);
        let query = request.target.split_once('?').map_or("", |(_, query)| query);
        let asked = if by_post { &body } else { query };
        lock(&self.asked).push(format!("{} {asked}", request.method));
        let settings = lock(&self.settings).clone();
        if let Some(status) = settings.always {
            return (status, String::new());
        }
        if by_post && settings.refuses_post {
            return (405, String::new());
        }
        let given = request.header("authorization");
        if settings.auth.is_some_and(|auth| given != Some(&format!("Basic {auth}"))) {
            return (401, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#.into());
        }
        let parameter = |name: &str| {
            let pairs = asked.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(n, _)| *n == name).map(|(_, value)| unescaped(value)).next()
        };
        if parameter("service").as_deref() != Some(TokenService::SERVICE) {
            return (400, String::new());
        }
        let scope = parameter("scope").unwrap_or_default();
        let repository = scope.split(':').nth(1).unwrap_or_default();
        match self.sign(repository, &settings.actions, settings.life) {
            Ok(token) => {
                let mut answer = json!({ "token": token });
                if let Some(seconds) = settings.says {
                    answer["expires_in"] = json!(seconds);
                }
                (200, answer.to_string())
            }
            Err(error) => (500, format!("{error:#}")),
        }
    }

    fn sign(&self, repository: &str, actions: &[String], life: Duration) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let access = json!({"type": "repository", "name": repository, "actions": actions});
        let (header, claims) = (
            json!({"typ": "JWT", "alg": "RS256", "x5c": [self.certificate]}),
            json!({"iss": TokenService::ISSUER, "sub": "somebody", "aud": TokenService::SERVICE, "jti": "1",
                "iat": now - 600, "nbf": now - 600, "exp": now + life.as_secs() - LEEWAY, "access": [access]}),
        );
        let text = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = self.rs256(&text)?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn rs256(&self, text: &str) -> Result<Vec<u8>> {
        let key: &Path = &self.dir.path().join("key.pem");
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256", "-sign"]).arg(key).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = openssl.spawn().context("running openssl")?;
        child.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
        let out = child.wait_with_output()?;
        ensure!(out.status.success(), "openssl dgst ended with {}", out.status);
        Ok(out.stdout)
    }
}

/// A value of a form or query.
fn unescaped(text: &str) -> String {
    let (mut bytes, mut out) = (text.bytes(), Vec::new());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits: Vec<u8> = bytes.by_ref().take(2).collect();
                hex::decode(&digits).ok().and_then(|byte| byte.first().copied()).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}
