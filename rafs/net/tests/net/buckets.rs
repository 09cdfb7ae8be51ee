//! S3 and OSS against a server that makes each signature again and compares.

use crate::support::*;
use guest_tests::servers::{Access, BlobServer};
use rafs::store::ErrorClass;
use rafs_net::{HttpOptions, KeyPair, NetStore, OssOptions, S3Options, Scheme, Secret};

fn keys(secret: &str) -> Option<KeyPair> {
    Some(KeyPair { id: Secret::new("AK").unwrap(), secret: Secret::new(secret).unwrap() })
}

fn s3(server: &BlobServer, path_style: bool, credentials: Option<KeyPair>) -> NetStore {
    // Names below `localhost` need not resolve; virtual-host style is asked for through a proxy.
    let endpoint = if path_style { server.host() } else { "s3.invalid:80".into() };
    let options = S3Options {
        scheme: Scheme::Http,
        endpoint,
        region: "eu-1".into(),
        bucket: "bu".into(),
        object_prefix: "some dir/x+".into(),
        credentials,
        path_style,
    };
    let proxy = (!path_style).then(|| rafs_net::ProxyOptions {
        fallback: false,
        ..rafs_net::ProxyOptions::at(Secret::new(&server.url()).unwrap())
    });
    let http = HttpOptions { retry_limit: 1, proxy, ..quick() };
    NetStore::s3(&runtime(), &options, &http).unwrap()
}

fn oss(server: &BlobServer, region: Option<&str>, secret: &str) -> NetStore {
    let options = OssOptions {
        scheme: Scheme::Http,
        endpoint: server.host(),
        bucket: "bu".into(),
        object_prefix: "dir/".into(),
        credentials: keys(secret),
        v4_region: region.map(Into::into),
    };
    NetStore::oss(&runtime(), &options, &HttpOptions { retry_limit: 1, ..quick() }).unwrap()
}

/// Blobs called `x+ID` too.
fn prefixed() -> Blobs {
    let blobs = blobs(50_000);
    std::fs::write(blobs.dir.path().join(format!("x%2B{}", blobs.id)), &blobs.data).unwrap();
    blobs
}

#[test]
fn s3_signatures() {
    let blobs = prefixed();
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    server.set(|s| s.access = Access::S3("eu-1".into(), "AK".into(), "SK".into()));
    for path_style in [true, false] {
        server.forget_records();
        let store = s3(&server, path_style, keys("SK"));
        assert!(fetch(&store, &blobs.id, 10..40_000).unwrap() == blobs.data[10..40_000]);
        assert_eq!(size(&store, &blobs.id).unwrap(), 50_000);
        let record = &server.records()[0];
        let (bucket, host) = if path_style { ("/bu", server.host()) } else { ("", "bu.s3.invalid".into()) };
        assert_eq!(record.target, format!("{bucket}/some%20dir/x%2B{}", blobs.id));
        assert_eq!(record.header("host"), Some(&*host));
        let error = fetch(&s3(&server, path_style, keys("wrong")), &blobs.id, 0..1).unwrap_err();
        assert_eq!(error.class, ErrorClass::Denied);
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    let anonymous = s3(&server, true, None);
    assert_eq!(fetch(&anonymous, &blobs.id, 0..1).unwrap_err().class, ErrorClass::Denied);
    server.set(|s| s.access = Access::Open);
    fetch(&anonymous, &blobs.id, 0..1).unwrap();
}

#[test]
fn oss_signatures() {
    let blobs = blobs(50_000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    for region in [None, Some("cn-1")] {
        server.set(|s| {
            s.access = match region {
                None => Access::OssV1("bu".into(), "AK".into(), "SK".into()),
                Some(region) => Access::OssV4("bu".into(), region.into(), "AK".into(), "SK".into()),
            };
        });
        let store = oss(&server, region, "SK");
        assert!(fetch(&store, &blobs.id, 10..40_000).unwrap() == blobs.data[10..40_000]);
        assert_eq!(size(&store, &blobs.id).unwrap(), 50_000);
        assert_eq!(
            fetch(&oss(&server, region, "wrong"), &blobs.id, 0..1).unwrap_err().class,
            ErrorClass::Denied
        );
    }
}

#[test]
fn images_from_buckets() {
    for name in ["v5-zstd-blake3", "v6-batch"] {
        let case = case(name);
        let dir = tempfile::tempdir().unwrap();
        for blob in std::fs::read_dir(&case.blobs).unwrap() {
            let blob = blob.unwrap();
            let file = blob.file_name().into_string().unwrap();
            std::fs::copy(blob.path(), dir.path().join(&file)).unwrap();
            std::fs::copy(blob.path(), dir.path().join(format!("x%2B{file}"))).unwrap();
        }
        let server = BlobServer::start(dir.path()).unwrap();
        server.set(|s| s.access = Access::S3("eu-1".into(), "AK".into(), "SK".into()));
        let store = std::sync::Arc::new(s3(&server, true, keys("SK")));
        case.assert_reads(&case.reader(store, std::time::Duration::from_secs(30)), "from S3");
        server.set(|s| s.access = Access::OssV1("bu".into(), "AK".into(), "SK".into()));
        let store = std::sync::Arc::new(oss(&server, None, "SK"));
        case.assert_reads(&case.reader(store, std::time::Duration::from_secs(30)), "from OSS");
    }
}
