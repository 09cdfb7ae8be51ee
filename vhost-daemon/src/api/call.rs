//! What a request asks for: its route, query and body, checked.
//!
//! Owns: routes, methods, queries, the shape of bodies, and what is answered when they are wrong. Does not own: doing it
//! ([`App`](super::App)), or reading requests from connections. Nothing here needs a daemon, so that it can be fuzzed.

use super::answer::Answer;
use crate::mounts::{MountPath, PathError};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A request, read whole.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Method as it came: methods are told apart by case.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query as it came, percent-encoded.
    pub query: String,
    /// Body, empty for none.
    pub body: Vec<u8>,
}

/// A path of a mount request, or why it is none. It is complained about after the body, as the reference does.
pub type Mountpoint = Result<MountPath, PathError>;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `GET /metrics`.
    Prometheus,
    /// `GET /healthz`.
    Health,
    /// `GET /daemon`; in v2 without what is mounted.
    Info {
        /// v2.
        short: bool,
    },
    /// `PUT /daemon`.
    SetLogLevel(String),
    /// `GET /daemon/events`.
    Events,
    /// `GET /daemon/backend`.
    Superblock(Mountpoint),
    /// `PUT /daemon/start`.
    Start,
    /// `PUT /daemon/exit`.
    Exit,
    /// `PUT /daemon/fuse/sendfd`.
    SendFd,
    /// `PUT /daemon/fuse/takeover`.
    TakeOver,
    /// `POST` and `PUT /mount`.
    Mount {
        /// Where.
        at: Mountpoint,
        /// What.
        what: MountBody,
        /// In the place of what is there.
        replace: bool,
    },
    /// `DELETE /mount`.
    Umount(Mountpoint),
    /// `GET /sockets`.
    Sockets,
    /// `POST /sockets`.
    AddSocket(SocketBody),
    /// `DELETE /sockets`.
    RemoveSocket(PathBuf),
    /// `GET /metrics...` of one mount or backend, with the id that was given.
    Metrics(Metrics, Option<String>),
    /// `GET /metrics/inflight`.
    Inflight,
    /// `GET /config`, with the id that was given.
    RuntimeConfig(Option<String>),
    /// `PUT /config`.
    SetRuntimeConfig {
        /// Instance id.
        id: String,
        /// Values by key.
        values: BTreeMap<String, String>,
    },
    /// `/api/v2/blobs`, with the outermost word of its error.
    Blobs(&'static str),
}

/// Kinds of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// File-system counters.
    Fs,
    /// Counters of files; `latest`: inode numbers read since the last call.
    Files {
        /// `latest=true`.
        latest: bool,
    },
    /// When files were first read.
    Pattern,
    /// Counters of a store.
    Backend,
    /// Counters of a cache.
    BlobCache,
}

/// Body of a mount request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MountBody {
    /// `rafs`, or one of the words for passing a directory through.
    #[serde(default = "rafs")]
    pub fs_type: String,
    /// Bootstrap or directory.
    pub source: String,
    /// Text of a configuration.
    pub config: String,
    /// Files to fetch ahead.
    #[serde(default)]
    pub prefetch_files: Option<Vec<PathBuf>>,
}

fn rafs() -> String {
    "rafs".to_owned()
}

/// Body of `POST /sockets`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SocketBody {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Request queues.
    pub queues: Option<u16>,
    /// What its guests see as `/`.
    pub root: Option<String>,
    /// The mounts that they see.
    #[serde(default)]
    pub mounts: Vec<String>,
}

#[derive(Deserialize)]
struct DaemonBody {
    log_level: String,
}

impl Call {
    /// Finds out what a request asks for.
    ///
    /// # Errors
    ///
    /// The answer to a request that asks for nothing there is, or not in the form that it has.
    pub fn of(request: &Request) -> Result<Self, Answer> {
        let get = |call: Self| request.is("GET", false).then_some(call).ok_or_else(Answer::bad_request);
        let put = |call: Self| request.is("PUT", false).then_some(call).ok_or_else(Answer::bad_request);
        let metrics = |kind: Metrics| get(Self::Metrics(kind, request.query("id")?));
        match request.path.as_str() {
            "/metrics" => get(Self::Prometheus),
            "/healthz" => get(Self::Health),
            "/api/v1/daemon" => request.daemon(false),
            "/api/v2/daemon" => request.daemon(true),
            "/api/v1/daemon/events" => get(Self::Events),
            "/api/v1/daemon/backend" => {
                get(Self::Events)?;
                Ok(Self::Superblock(request.mountpoint()?))
            }
            "/api/v1/daemon/start" => put(Self::Start),
            "/api/v1/daemon/exit" => put(Self::Exit),
            "/api/v1/daemon/fuse/sendfd" => put(Self::SendFd),
            "/api/v1/daemon/fuse/takeover" => put(Self::TakeOver),
            "/api/v1/mount" => request.mount(),
            "/api/v1/sockets" => request.sockets(),
            "/api/v1/metrics" => metrics(Metrics::Fs),
            "/api/v1/metrics/files" => {
                let latest = request.query("latest")?.is_some_and(|value| value == "true");
                metrics(Metrics::Files { latest })
            }
            "/api/v1/metrics/pattern" => metrics(Metrics::Pattern),
            "/api/v1/metrics/backend" => metrics(Metrics::Backend),
            "/api/v1/metrics/blobcache" => metrics(Metrics::BlobCache),
            "/api/v1/metrics/inflight" => get(Self::Inflight),
            "/api/v1/config" => request.runtime_config(),
            "/api/v2/blobs" => match request.method.as_str() {
                "PUT" => Ok(Self::Blobs("CreateBlobObject")),
                "DELETE" => Ok(Self::Blobs("DeleteBlobObject")),
                "GET" => Ok(Self::Blobs("GetBlobObjects")),
                _ => Err(Answer::bad_request()),
            },
            _ => Err(Answer::error(404, "NoRoute")),
        }
    }
}

impl Request {
    /// Whether it has this method, and a body or none.
    fn is(&self, method: &str, body: bool) -> bool {
        self.method == method && self.body.is_empty() != body
    }

    fn daemon(&self, short: bool) -> Result<Call, Answer> {
        if self.is("GET", false) {
            Ok(Call::Info { short })
        } else if self.is("PUT", true) {
            Ok(Call::SetLogLevel(self.body::<DaemonBody>()?.log_level))
        } else {
            Err(Answer::bad_request())
        }
    }

    fn mount(&self) -> Result<Call, Answer> {
        let at = self.mountpoint()?;
        if self.is("DELETE", false) {
            return Ok(Call::Umount(at));
        }
        let replace = self.is("PUT", true);
        if !replace && !self.is("POST", true) {
            return Err(Answer::bad_request());
        }
        Ok(Call::Mount { at, what: self.body()?, replace })
    }

    fn sockets(&self) -> Result<Call, Answer> {
        if self.is("GET", false) {
            Ok(Call::Sockets)
        } else if self.is("POST", true) {
            Ok(Call::AddSocket(self.body()?))
        } else if self.is("DELETE", false) {
            Ok(Call::RemoveSocket(self.required("socket")?.into()))
        } else {
            Err(Answer::bad_request())
        }
    }

    fn runtime_config(&self) -> Result<Call, Answer> {
        if self.is("GET", false) {
            Ok(Call::RuntimeConfig(self.query("id")?))
        } else if self.is("PUT", true) {
            Ok(Call::SetRuntimeConfig { id: self.required("id")?, values: self.body()? })
        } else {
            Err(Answer::bad_request())
        }
    }

    fn mountpoint(&self) -> Result<Mountpoint, Answer> {
        Ok(MountPath::parse(&self.required("mountpoint")?))
    }

    fn required(&self, key: &str) -> Result<String, Answer> {
        let missing = || query_error(&format!("'{key}' should be specified in query string"));
        self.query(key)?.ok_or_else(missing)
    }

    /// The first value of a query key, decoded.
    fn query(&self, wanted: &str) -> Result<Option<String>, Answer> {
        for pair in self.query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if decoded(key) == wanted.as_bytes() {
                // Two texts that are no UTF-8 must not become the same path.
                let value = String::from_utf8(decoded(value));
                return value.map(Some).map_err(|_| query_error(&format!("'{wanted}' is not UTF-8")));
            }
        }
        Ok(None)
    }

    /// A JSON body.
    fn body<T: DeserializeOwned>(&self) -> Result<T, Answer> {
        serde_json::from_slice(&self.body).map_err(|e| Answer::error(400, &format!("ParseBody({e:?})")))
    }
}

fn query_error(text: &str) -> Answer {
    Answer::error(400, &format!("QueryString({text:?})"))
}

/// Percent-decoded, with `+` for a space, as forms have it. A `%` without two digits stands for itself.
fn decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, more)) = rest.split_first() {
        rest = more;
        let digit = |at: usize| more.get(at).and_then(|&d| char::from(d).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.extend(u8::try_from(high * 16 + low));
                rest = more.get(2..).unwrap_or_default();
            }
            (b'+', ..) => out.push(b' '),
            _ => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &str, target: &str, body: &str) -> Result<Call, (u16, String)> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let request = Request {
            method: method.into(),
            path: path.into(),
            query: query.into(),
            body: body.as_bytes().to_vec(),
        };
        Call::of(&request).map_err(|answer| (answer.status, answer.body.unwrap_or_default()))
    }

    #[test]
    fn paths_in_queries_are_decoded_once() {
        let mount = |query: &str| match of("DELETE", &format!("/api/v1/mount?{query}"), "") {
            Ok(Call::Umount(Ok(path))) => path.as_str().to_owned(),
            Ok(Call::Umount(Err(error))) => error.to_string(),
            other => format!("{other:?}"),
        };
        for (query, path) in [
            ("mountpoint=/rafs/c1/lowerdir", "/rafs/c1/lowerdir"),
            ("mountpoint=%2Frafs%2fc1%2Flowerdir", "/rafs/c1/lowerdir"),
            ("x=1&mountpoint=/a&mountpoint=/b", "/a"),
            ("mountp%6Fint=/a", "/a"),
            ("mountpoint=/a%20b+c", "/a b c"),
            ("mountpoint=/%252F", "/%2F"),
            ("mountpoint=/100%&x", "/100%"),
            ("mountpoint=//a//./b/", "/a/b"),
            ("mountpoint=/%C3%A9", "/\u{e9}"),
        ] {
            assert_eq!(mount(query), path, "{query}");
        }
        for (query, part) in [
            ("mountpoint=/%ff", "is not UTF-8"),
            ("", "'mountpoint' should be specified in query string"),
            ("mountpoint", "is not absolute"),
            ("mountpoint=/a/%2e%2e/b", "has \\\"..\\\""),
            ("mountpoint=/%00", "a NUL"),
        ] {
            let got = mount(query);
            assert!(got.contains(part) || got.contains(&part.replace('\\', "")), "{query}: {got}");
        }
    }

    #[test]
    fn methods_and_bodies_that_do_not_fit() {
        for (method, target, body, status) in [
            ("get", "/api/v1/daemon", "", 400),
            ("HEAD", "/api/v1/daemon", "", 400),
            ("OPTIONS", "/api/v1/mount?mountpoint=/a", "", 400),
            ("DELETE", "/api/v1/mount?mountpoint=/a", "{}", 400),
            ("PUT", "/api/v1/daemon/start", "{}", 400),
            ("PUT", "/api/v1/daemon", "{}", 400),
            ("PUT", "/api/v1/config", r#"{"registry_auth":"x"}"#, 400),
            ("POST", "/api/v1/config?id=x", r#"{"registry_auth":"x"}"#, 400),
            ("PATCH", "/api/v2/blobs", "", 400),
            ("GET", "//api/v1/daemon", "", 404),
            ("GET", "/api/v1/daemon/", "", 404),
            ("GET", "/api/v1/%64aemon", "", 404),
            ("GET", "*", "", 404),
            ("GET", "", "", 404),
        ] {
            let (got, _) = of(method, target, body).unwrap_err();
            assert_eq!(got, status, "{method} {target}");
        }
        assert_eq!(
            of("GET", "/api/v1/metrics?id=%2F", "").unwrap(),
            Call::Metrics(Metrics::Fs, Some("/".into()))
        );
        let latest = Call::Metrics(Metrics::Files { latest: true }, None);
        assert_eq!(of("GET", "/api/v1/metrics/files?latest=true", "").unwrap(), latest);
    }
}
