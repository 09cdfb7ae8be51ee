//! The backend sections (config.md sections 4, 4.1 and 4.2): where blobs come from.
//!
//! Owns: every key of them, checked and with its default. Does not own: which version of file they stood in.

use crate::{
    Environment, HttpOptions, HttpProxyOptions, KeyPair, MirrorOptions, NetError, OssOptions, ProxyOptions,
    RegistryOptions, S3Options, Scheme, Secret,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Where blobs come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Local directories.
    LocalFs(LocalFs),
    /// Partitions of a local disk.
    LocalDisk(LocalDisk),
    /// A Docker or OCI registry.
    Registry(Box<RegistryOptions>, Box<HttpOptions>),
    /// An S3 bucket.
    S3(Box<S3Options>, Box<HttpOptions>),
    /// An OSS bucket.
    Oss(Box<OssOptions>, Box<HttpOptions>),
    /// Any HTTP server, or a unix socket.
    HttpProxy(HttpProxyOptions, Box<HttpOptions>),
}

impl Backend {
    /// The type as configurations name it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::LocalFs(_) => "localfs",
            Self::LocalDisk(_) => "localdisk",
            Self::Registry(..) => "registry",
            Self::S3(..) => "s3",
            Self::Oss(..) => "oss",
            Self::HttpProxy(..) => "http-proxy",
        }
    }
}

/// The `localfs` backend's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct LocalFs {
    /// Directory of blobs.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// One file that every blob id reads; wins over `dir`.
    #[serde(default)]
    pub blob_file: Option<PathBuf>,
    /// Directories to look in when `dir` does not have a blob.
    #[serde(default)]
    pub alt_dirs: Vec<PathBuf>,
}

/// The `localdisk` backend's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct LocalDisk {
    /// Block device or image file.
    pub device_path: PathBuf,
    /// The disk as a whole is the blob.
    #[serde(default)]
    pub disable_gpt: bool,
}

/// Keys of all backends that are reached by HTTP.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Common {
    scheme: Option<String>,
    skip_verify: Option<bool>,
    ca_cert_files: Option<Vec<PathBuf>>,
    timeout: Option<u64>,
    connect_timeout: Option<u64>,
    retry_limit: Option<u8>,
    deadline: Option<u64>,
    rate_limit: Option<u64>,
    proxy: Option<Proxy>,
    mirrors: Option<Vec<Mirror>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Proxy {
    url: Option<String>,
    ping_url: Option<String>,
    fallback: Option<bool>,
    check_interval: Option<u64>,
    check_pause_elapsed: Option<u64>,
    use_http: Option<bool>,
    dragonfly_scheduler_endpoint: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Mirror {
    host: String,
    #[serde(default)]
    ping_url: Option<String>,
    #[serde(default)]
    headers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    health_check_interval: Option<u64>,
    #[serde(default)]
    failure_limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Registry {
    host: String,
    repo: String,
    auth: Option<String>,
    registry_token: Option<String>,
    blob_url_scheme: Option<String>,
    blob_redirected_host: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Bucket {
    #[serde(default)]
    endpoint: Option<String>,
    bucket_name: String,
    region: Option<String>,
    object_prefix: Option<String>,
    access_key_id: Option<String>,
    access_key_secret: Option<String>,
    path_style: Option<bool>,
    signature_version: Option<String>,
}

#[derive(Debug, Deserialize)]
struct HttpProxy {
    addr: String,
    path: Option<String>,
}

fn invalid(text: impl Into<String>) -> NetError {
    NetError::Config(text.into())
}

fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

impl Backend {
    /// Whether there is such a type.
    #[must_use]
    pub fn is_known(kind: &str) -> bool {
        ["localfs", "localdisk", "registry", "oss", "s3", "http-proxy"].contains(&kind)
    }

    /// Reads the section of a backend of type `kind`. What has no effect is put into `remarks`, a sentence each.
    ///
    /// # Errors
    /// [`NetError::Config`]: a key is missing, or has a value that cannot be honoured.
    pub fn parse(kind: &str, section: &Value, remarks: &mut Vec<String>) -> Result<Self, NetError> {
        parse(kind, section, remarks)
    }

    /// Adds what the environment says.
    pub fn apply(&mut self, environment: &Environment) {
        let http = match self {
            Self::LocalFs(_) | Self::LocalDisk(_) => return,
            Self::Registry(registry, http) => {
                if environment.pull_auth.is_some() {
                    registry.auth.clone_from(&environment.pull_auth);
                }
                registry.docker_config.clone_from(&environment.docker_config);
                http
            }
            Self::S3(_, http) | Self::Oss(_, http) | Self::HttpProxy(_, http) => http,
        };
        http.headers.clone_from(&environment.headers);
    }

    /// How its servers are reached; `None` for local ones.
    #[must_use]
    pub fn http(&self) -> Option<&HttpOptions> {
        match self {
            Self::LocalFs(_) | Self::LocalDisk(_) => None,
            Self::Registry(_, http) | Self::S3(_, http) | Self::Oss(_, http) | Self::HttpProxy(_, http) => {
                Some(http)
            }
        }
    }
}

fn parse(kind: &str, section: &Value, remarks: &mut Vec<String>) -> Result<Backend, NetError> {
    match kind {
        "localfs" => {
            let mut localfs: LocalFs = keys(kind, section)?;
            for path in [&mut localfs.dir, &mut localfs.blob_file] {
                *path = path.take().filter(|p| !p.as_os_str().is_empty());
            }
            if localfs.dir.is_none() && localfs.blob_file.is_none() {
                return Err(invalid("backend localfs needs \"dir\" or \"blob_file\""));
            }
            Ok(Backend::LocalFs(localfs))
        }
        "localdisk" => {
            let disk: LocalDisk = keys(kind, section)?;
            if disk.device_path.as_os_str().is_empty() {
                return Err(invalid("backend localdisk needs a \"device_path\""));
            }
            Ok(Backend::LocalDisk(disk))
        }
        "registry" => {
            let (common, registry): (Common, Registry) = (keys(kind, section)?, keys(kind, section)?);
            // Anything but "http" means https here.
            let scheme = |text: &str| if text == "http" { Scheme::Http } else { Scheme::Https };
            let options = RegistryOptions {
                scheme: common.scheme.as_deref().map_or(Scheme::Https, scheme),
                host: registry.host,
                repo: registry.repo,
                auth: registry.auth.as_deref().and_then(Secret::new),
                registry_token: registry.registry_token.as_deref().and_then(Secret::new),
                blob_url_scheme: filled(registry.blob_url_scheme).as_deref().map(scheme),
                blob_redirected_host: filled(registry.blob_redirected_host),
                docker_config: None,
            };
            for (key, value) in [("host", &options.host), ("repo", &options.repo)] {
                if value.trim().is_empty() {
                    return Err(invalid(format!("backend registry needs a \"{key}\"")));
                }
            }
            Ok(Backend::Registry(Box::new(options), Box::new(http(kind, common, remarks)?)))
        }
        "s3" => {
            let (common, bucket): (Common, Bucket) = (keys(kind, section)?, keys(kind, section)?);
            let options = S3Options {
                scheme: scheme(kind, common.scheme.as_deref())?,
                endpoint: bucket.endpoint.clone().unwrap_or_default(),
                region: filled(bucket.region.clone())
                    .ok_or_else(|| invalid("backend s3 needs a \"region\""))?,
                bucket: bucket.bucket_name.clone(),
                object_prefix: bucket.object_prefix.clone().unwrap_or_default(),
                credentials: key_pair(kind, &bucket)?,
                path_style: bucket.path_style.unwrap_or(true),
            };
            Ok(Backend::S3(Box::new(options), Box::new(http(kind, common, remarks)?)))
        }
        "oss" => {
            let (common, bucket): (Common, Bucket) = (keys(kind, section)?, keys(kind, section)?);
            let v4_region = match bucket.signature_version.as_deref() {
                None | Some("" | "v1") => None,
                Some("v4") => {
                    let region = filled(bucket.region.clone());
                    Some(region.ok_or_else(|| invalid("oss signature_version \"v4\" needs a \"region\""))?)
                }
                Some(other) => {
                    return Err(invalid(format!("oss signature_version is {other:?}; use \"v1\" or \"v4\"")));
                }
            };
            let options = OssOptions {
                scheme: scheme(kind, common.scheme.as_deref())?,
                endpoint: filled(bucket.endpoint.clone())
                    .ok_or_else(|| invalid("backend oss needs an \"endpoint\""))?,
                bucket: bucket.bucket_name.clone(),
                object_prefix: bucket.object_prefix.clone().unwrap_or_default(),
                credentials: key_pair(kind, &bucket)?,
                v4_region,
            };
            Ok(Backend::Oss(Box::new(options), Box::new(http(kind, common, remarks)?)))
        }
        "http-proxy" => {
            let (common, proxy): (Common, HttpProxy) = (keys(kind, section)?, keys(kind, section)?);
            let options = HttpProxyOptions { addr: proxy.addr, path: proxy.path.unwrap_or_default() };
            Ok(Backend::HttpProxy(options, Box::new(http(kind, common, remarks)?)))
        }
        other => Err(invalid(format!(
            "unknown backend type {other:?}; this version knows localfs, localdisk, registry, oss, s3 and http-proxy"
        ))),
    }
}

fn keys<T: DeserializeOwned>(kind: &str, section: &Value) -> Result<T, NetError> {
    T::deserialize(section).map_err(|e| invalid(format!("backend {kind}: {e}")))
}

fn scheme(kind: &str, text: Option<&str>) -> Result<Scheme, NetError> {
    match text {
        None | Some("" | "https") => Ok(Scheme::Https),
        Some("http") => Ok(Scheme::Http),
        Some(other) => Err(invalid(format!("{kind} scheme is {other:?}; use \"http\" or \"https\""))),
    }
}

fn key_pair(kind: &str, bucket: &Bucket) -> Result<Option<KeyPair>, NetError> {
    let secret = |text: &Option<String>| text.as_deref().and_then(Secret::new);
    match (secret(&bucket.access_key_id), secret(&bucket.access_key_secret)) {
        (Some(id), Some(secret)) => Ok(Some(KeyPair { id, secret })),
        (None, None) => Ok(None),
        _ => {
            Err(invalid(format!("{kind} has one of access_key_id and access_key_secret; give both or none")))
        }
    }
}

/// Seconds, where 0 means none.
fn limit(seconds: Option<u64>, default: Option<Duration>) -> Option<Duration> {
    match seconds {
        None => default,
        Some(0) => None,
        Some(seconds) => Some(Duration::from_secs(seconds)),
    }
}

fn http(kind: &str, common: Common, remarks: &mut Vec<String>) -> Result<HttpOptions, NetError> {
    let default = HttpOptions::default();
    let deadline = match common.deadline {
        None => default.deadline,
        Some(0) => return Err(invalid(format!("{kind} deadline is 0; a request needs some seconds"))),
        Some(seconds) => Duration::from_secs(seconds),
    };
    Ok(HttpOptions {
        skip_verify: common.skip_verify.unwrap_or(false),
        ca_cert_files: common.ca_cert_files.unwrap_or_default(),
        timeout: limit(common.timeout, default.timeout),
        connect_timeout: limit(common.connect_timeout, default.connect_timeout),
        retry_limit: common.retry_limit.unwrap_or(0),
        deadline,
        rate_limit: common.rate_limit.unwrap_or(0),
        proxy: common.proxy.and_then(|proxy| proxy.options(remarks)),
        mirrors: common.mirrors.unwrap_or_default().into_iter().map(Mirror::options).collect(),
        ..default
    })
}

impl Proxy {
    fn options(self, remarks: &mut Vec<String>) -> Option<ProxyOptions> {
        if filled(self.dragonfly_scheduler_endpoint).is_some() {
            remarks.push(
                "proxy.dragonfly_scheduler_endpoint needs Dragonfly's own library, which is not built in: requests go \
                 through proxy.url"
                    .to_owned(),
            );
        }
        let default = ProxyOptions::at(Secret::new(&self.url.unwrap_or_default())?);
        Some(ProxyOptions {
            ping_url: filled(self.ping_url),
            fallback: self.fallback.unwrap_or(default.fallback),
            check_interval: limit(self.check_interval, None).unwrap_or(default.check_interval),
            check_pause_elapsed: self
                .check_pause_elapsed
                .map_or(default.check_pause_elapsed, Duration::from_secs),
            use_http: self.use_http.unwrap_or(false),
            ..default
        })
    }
}

impl Mirror {
    fn options(self) -> MirrorOptions {
        let default = MirrorOptions::at(&self.host);
        MirrorOptions {
            ping_url: filled(self.ping_url),
            headers: self.headers.unwrap_or_default().into_iter().collect(),
            health_check_interval: limit(self.health_check_interval, None)
                .unwrap_or(default.health_check_interval),
            failure_limit: self.failure_limit.unwrap_or(default.failure_limit),
            ..default
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(kind: &str, section: Value) -> Result<Backend, String> {
        parse(kind, &section, &mut Vec::new()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_registry_as_the_snapshotter_writes_it() {
        let section = json!({
            "readahead": false, "host": "reg.example:5000", "repo": "a/b", "auth": "dTpw", "registry_token": "",
            "scheme": "http", "skip_verify": true, "ca_cert_files": ["/ca.pem"], "timeout": 0, "connect_timeout": 7,
            "retry_limit": 2, "deadline": 9, "rate_limit": 1000, "blob_url_scheme": "http",
            "blob_redirected_host": "cdn:80",
            "proxy": {"url": "http://127.0.0.1:65001", "fallback": false, "ping_url": "http://127.0.0.1:40901/ping",
                "check_interval": 3, "check_pause_elapsed": 30, "use_http": true, "cache_dir": "/x"},
            "mirrors": [{"host": "http://m:1", "headers": {"X-Dragonfly-Registry": "https://reg"}, "failure_limit": 3}]
        });
        let Backend::Registry(registry, http) = of("registry", section).unwrap() else { panic!() };
        let expected = RegistryOptions {
            scheme: Scheme::Http,
            host: "reg.example:5000".into(),
            repo: "a/b".into(),
            auth: Secret::new("dTpw"),
            registry_token: None,
            blob_url_scheme: Some(Scheme::Http),
            blob_redirected_host: Some("cdn:80".into()),
            docker_config: None,
        };
        assert_eq!(*registry, expected);
        let expected = HttpOptions {
            skip_verify: true,
            ca_cert_files: vec!["/ca.pem".into()],
            timeout: None,
            connect_timeout: Some(Duration::from_secs(7)),
            retry_limit: 2,
            deadline: Duration::from_secs(9),
            rate_limit: 1000,
            proxy: Some(ProxyOptions {
                url: Secret::new("http://127.0.0.1:65001").unwrap(),
                ping_url: Some("http://127.0.0.1:40901/ping".into()),
                fallback: false,
                check_interval: Duration::from_secs(3),
                check_pause_elapsed: Duration::from_secs(30),
                use_http: true,
            }),
            mirrors: vec![MirrorOptions {
                headers: vec![("X-Dragonfly-Registry".into(), "https://reg".into())],
                failure_limit: 3,
                ..MirrorOptions::at("http://m:1")
            }],
            ..HttpOptions::default()
        };
        assert_eq!(*http, expected);
    }

    #[test]
    fn defaults_and_a_proxy_without_url() {
        let section = json!({"host": "h", "repo": "r", "auth": null, "scheme": "", "proxy": {"url": "", "fallback": false}});
        let Backend::Registry(registry, http) = of("registry", section).unwrap() else { panic!() };
        assert_eq!((registry.scheme, registry.auth), (Scheme::Https, None));
        assert_eq!(*http, HttpOptions::default());
        let mut remarks = Vec::new();
        let section =
            json!({"host": "h", "repo": "r", "proxy": {"dragonfly_scheduler_endpoint": "http://s"}});
        parse("registry", &section, &mut remarks).unwrap();
        assert!(remarks[0].contains("dragonfly_scheduler_endpoint"));
    }

    #[test]
    fn buckets_disks_and_servers() {
        let section = json!({"endpoint": "", "region": "r", "bucket_name": "b", "object_prefix": "p/", "access_key_id": "i",
            "access_key_secret": "s", "path_style": false, "scheme": "http"});
        let Backend::S3(s3, _) = of("s3", section).unwrap() else { panic!() };
        assert_eq!((s3.endpoint.as_str(), s3.path_style, s3.object_prefix.as_str()), ("", false, "p/"));
        assert!(s3.credentials.is_some() && !format!("{s3:?}").contains("\"s\""));
        let section = json!({"endpoint": "e", "bucket_name": "b", "signature_version": "v4", "region": "r"});
        let Backend::Oss(oss, _) = of("oss", section).unwrap() else { panic!() };
        assert_eq!((oss.v4_region.as_deref(), &oss.credentials), (Some("r"), &None));
        let disk = of("localdisk", json!({"device_path": "/dev/vdb", "disable_gpt": true})).unwrap();
        let expected = LocalDisk { device_path: "/dev/vdb".into(), disable_gpt: true };
        assert_eq!(disk, Backend::LocalDisk(expected));
        let Backend::HttpProxy(http, _) = of("http-proxy", json!({"addr": "/x.sock"})).unwrap() else {
            panic!()
        };
        assert_eq!(http, HttpProxyOptions { addr: "/x.sock".into(), path: String::new() });
    }

    #[test]
    fn what_is_missing_or_wrong_is_said() {
        for (kind, section, part) in [
            ("registry", json!({"host": "", "repo": "r"}), "\"host\""),
            ("registry", json!({"repo": "r"}), "host"),
            ("registry", json!({"host": "h", "repo": "r", "retry_limit": 256}), "256"),
            ("registry", json!({"host": "h", "repo": "r", "deadline": 0}), "deadline"),
            ("s3", json!({"endpoint": "", "bucket_name": "b"}), "region"),
            ("s3", json!({"region": "r", "bucket_name": "b", "scheme": "ftp"}), "ftp"),
            ("oss", json!({"bucket_name": "b"}), "endpoint"),
            ("oss", json!({"endpoint": "e", "bucket_name": "b", "signature_version": "v4"}), "region"),
            ("oss", json!({"endpoint": "e", "bucket_name": "b", "signature_version": "v2"}), "v2"),
            ("oss", json!({"endpoint": "e", "bucket_name": "b", "access_key_id": "x"}), "both or none"),
            ("http-proxy", json!({}), "addr"),
            ("localdisk", json!({"device_path": ""}), "device_path"),
            ("localfs", json!({"dir": ""}), "\"dir\""),
            ("ftp", json!({}), "unknown backend type"),
        ] {
            let error = of(kind, section).unwrap_err();
            assert!(error.contains(part), "{kind}: {error}");
        }
    }
}
