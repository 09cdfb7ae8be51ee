//! Debian's servers, each on a free port of 127.0.0.1 with files in a folder of its own: docker-registry, nginx with
//! TLS, tinyproxy. `make deps` installs them.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::token_service::TokenService;
use crate::support::process::Process;

/// Whether `program` is there. Where it is not, a test says so and passes, except with `CI=true`.
///
/// # Panics
/// With `CI=true` when it is missing.
#[must_use]
#[allow(clippy::panic, clippy::print_stderr, reason = "the end of a test, and its message")]
pub fn installed(program: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let sbin = PathBuf::from("/usr/sbin");
    if std::env::split_paths(&dirs).chain([sbin]).any(|dir| dir.join(program).is_file()) {
        return true;
    }
    let text = format!("{program} is not installed, so this test did nothing; `make deps` installs it");
    if std::env::var("CI").is_ok_and(|ci| ci == "true") {
        panic!("{text}");
    }
    eprintln!("{text}");
    false
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

pub(super) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let out = command.output().with_context(|| format!("running {:?}", command.get_program()))?;
    if !out.status.success() {
        bail!("{:?}: {}", command.get_program(), String::from_utf8_lossy(&out.stderr));
    }
    Ok(out.stdout)
}

fn wait_for(port: u16, process: &mut Process) -> Result<()> {
    for _ in 0..2000 {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(());
        }
        if let Some(status) = process.ended()? {
            bail!("ended with {status}:\n{}", process.output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("does not listen:\n{}", process.output());
}

/// Debian's `docker-registry` with the blobs of a folder in repository `a/b`.
#[derive(Debug)]
pub struct DockerRegistry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    _process: Process,
    _dir: TempDir,
}

impl DockerRegistry {
    /// Starts it; `user` is a name and a password that it asks for by Basic. Files of `blobs` whose name is their sha256
    /// can be read.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(blobs: &Path, user: Option<(&str, &str)>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let auth = match user {
            Some((user, password)) => {
                let htpasswd = dir.path().join("htpasswd");
                std::fs::write(&htpasswd, run(Command::new("htpasswd").args(["-Bbn", user, password]))?)?;
                format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", htpasswd.display())
            }
            None => String::new(),
        };
        Self::serve(dir, blobs, &auth)
    }

    /// The same for those who show a token of `service`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_with_tokens(blobs: &Path, service: &TokenService) -> Result<Self> {
        let auth = format!(
            "auth:\n  token:\n    realm: {}\n    service: {}\n    issuer: {}\n    rootcertbundle: {}\n",
            service.realm(),
            TokenService::SERVICE,
            TokenService::ISSUER,
            service.certificate().display()
        );
        Self::serve(tempfile::tempdir()?, blobs, &auth)
    }

    fn serve(dir: TempDir, blobs: &Path, auth: &str) -> Result<Self> {
        let port = free_port()?;
        let root = dir.path().join("data");
        let store = root.join("docker/registry/v2");
        for blob in std::fs::read_dir(blobs)? {
            let blob = blob?;
            let name = blob.file_name().to_string_lossy().into_owned();
            let Some(two) = name.get(..2).filter(|_| name.len() == 64) else { continue };
            let data = store.join("blobs/sha256").join(two).join(&name);
            std::fs::create_dir_all(&data)?;
            std::fs::copy(blob.path(), data.join("data"))?;
            let link = store.join("repositories/a/b/_layers/sha256").join(&name);
            std::fs::create_dir_all(&link)?;
            std::fs::write(link.join("link"), format!("sha256:{name}"))?;
        }
        let config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  \
             addr: 127.0.0.1:{port}\n{auth}",
            root.display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file);
        let mut process = Process::spawn(&mut command, &dir.path().join("log"))?;
        wait_for(port, &mut process).context("docker-registry")?;
        Ok(Self { host: format!("127.0.0.1:{port}"), _process: process, _dir: dir })
    }
}

/// Debian's `nginx` serving a folder by http and, with a certificate of its own authority, by https.
#[derive(Debug)]
pub struct Nginx {
    /// `127.0.0.1:PORT`, plain.
    pub http: String,
    /// `127.0.0.1:PORT`, TLS.
    pub https: String,
    /// The authority's certificate, PEM.
    pub ca: PathBuf,
    _process: Process,
    _dir: TempDir,
}

impl Nginx {
    /// Serves the files of `root` at `/NAME` and at `/v2/a/b/blobs/sha256:NAME`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(root: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let openssl = |args: &[&str]| run(Command::new("openssl").current_dir(dir.path()).args(args));
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-subj",
            "/CN=test authority",
        ])?;
        openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            "key.pem",
            "-out",
            "csr.pem",
            "-subj",
            "/CN=localhost",
        ])?;
        std::fs::write(at("ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")?;
        openssl(&[
            "x509",
            "-req",
            "-in",
            "csr.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "ext",
            "-out",
            "cert.pem",
        ])?;
        let (plain, tls) = (free_port()?, free_port()?);
        let temp = dir.path().display();
        let config = format!(
            "daemon off;\nmaster_process off;\npid {temp}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n  \
             access_log off;\n  client_body_temp_path {temp}/t1;\n  proxy_temp_path {temp}/t2;\n  \
             fastcgi_temp_path {temp}/t3;\n  uwsgi_temp_path {temp}/t4;\n  scgi_temp_path {temp}/t5;\n  server {{\n    \
             listen 127.0.0.1:{plain};\n    listen 127.0.0.1:{tls} ssl;\n    ssl_certificate {temp}/cert.pem;\n    \
             ssl_certificate_key {temp}/key.pem;\n    root {root};\n    \
             location ~ ^/v2/a/b/blobs/sha256:(.*)$ {{ try_files /$1 =404; }}\n  }}\n}}\n",
            root = root.display()
        );
        std::fs::write(at("nginx.conf"), config)?;
        // It must be able to read what the test's own user can.
        let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(at("nginx.conf")).arg("-e").arg(at("error.log")).arg("-g").arg(user);
        let mut process = Process::spawn(&mut command, &at("log"))?;
        wait_for(tls, &mut process).context("nginx")?;
        Ok(Self {
            http: format!("127.0.0.1:{plain}"),
            https: format!("127.0.0.1:{tls}"),
            ca: at("ca.pem"),
            _process: process,
            _dir: dir,
        })
    }
}

/// Debian's `tinyproxy`, an HTTP proxy that also tunnels.
#[derive(Debug)]
pub struct Tinyproxy {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    log: PathBuf,
    _process: Process,
    _dir: TempDir,
}

impl Tinyproxy {
    /// Starts it; it may tunnel to any port.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let log = dir.path().join("proxy.log");
        let config = format!(
            "Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 30\nLogLevel Connect\nLogFile \"{}\"\n",
            log.display()
        );
        std::fs::write(dir.path().join("conf"), config)?;
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(dir.path().join("conf"));
        let mut process = Process::spawn(&mut command, &dir.path().join("log"))?;
        wait_for(port, &mut process).context("tinyproxy")?;
        Ok(Self { url: format!("http://127.0.0.1:{port}"), log, _process: process, _dir: dir })
    }

    /// How many requests it has taken.
    #[must_use]
    pub fn requests(&self) -> usize {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .lines()
            .filter(|line| line.contains("Request (file descriptor"))
            .count()
    }
}
