//! Command lines of the older documents, and cache files in place of a blob.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::image::Image;
use std::fs;
use std::path::Path;
use support::command::{hex, ok, run, text, words};
use support::layer::Layer;
use support::read::contents;

#[test]
fn older_forms_of_the_documents() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let layer = Layer::new(1);
    let tree = layer.tree();
    ok(&["create", "--bootstrap", text(&at("one")), "--blob", text(&at("blob")), text(&tree)]);
    let id = hex(&fs::read(at("blob")).unwrap());
    let want = {
        fs::copy(at("blob"), at(&id)).unwrap();
        contents(&at("one"), out.path())
    };
    let dir = format!(r#"{{"dir":{:?}}}"#, text(out.path()));
    let file = format!(r#"{{"blob_file":{:?}}}"#, text(&at("blob2")));
    let config = at("backend.json");
    fs::write(&config, &dir).unwrap();
    for args in [
        &["--backend-type", "localfs", "--backend-config", &dir][..],
        &["--backend-type=localfs", "--backend-config-file", text(&config)],
        &["--backend-type", "localfs", "--backend-config", &file],
    ] {
        let output = ok(&[&["create", "--bootstrap", text(&at("two"))][..], args, &[text(&tree)]].concat());
        assert!(String::from_utf8_lossy(&output.stderr).contains("older form"));
        assert!(fs::read(at("one")).unwrap() == fs::read(at("two")).unwrap());
    }
    assert!(fs::read(at("blob")).unwrap() == fs::read(at("blob2")).unwrap());
    // Zeros before the data.
    let (dir, source, gap) = (text(out.path()), text(&tree), at("gap"));
    let output =
        ok(&words(&format!("create -B {} -D {dir} --blob-offset 512 -l error {source}", text(&gap))));
    assert!(output.stderr.is_empty());
    assert!(contents(&gap, out.path()) == want);
    let id = Image::open(&gap).unwrap().blobs()[0].id.clone();
    assert!(fs::read(at(&id)).unwrap()[..512].iter().all(|b| *b == 0));
    // A backend that nothing is written to is refused.
    let no = at("no");
    let line = format!("create -B {} -D {dir} --backend-type oss --backend-config {{}} {source}", text(&no));
    let output = run(&words(&line));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("upload"));
}

#[test]
fn cache_files_in_place_of_a_blob() {
    let layer = Layer::new(1);
    for (version, digester) in [("6", "blake3"), ("5", "sha256")] {
        let cache = tempfile::tempdir().unwrap();
        let (out, boot) = (tempfile::tempdir().unwrap(), cache.path().join("boot"));
        let tree = layer.tree();
        let create = |boot: &Path, more: &str| {
            let (boot, tree) = (text(boot), text(&tree));
            ok(&words(&format!("create -v {version} --digester {digester} -B {boot} {more} {tree}")))
        };
        create(&boot, &format!("--blob-cache-dir {}", text(cache.path())));
        let id = Image::open(&boot).unwrap().blobs()[0].id.clone();
        let mut names: Vec<String> = fs::read_dir(cache.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut expected = vec![format!("{id}.blob.data"), "boot".to_owned()];
        if version == "6" {
            expected.insert(1, format!("{id}.blob.meta"));
        }
        assert_eq!(names, expected);
        // The bootstrap and the id are those of an uncompressed blob.
        let plain = out.path().join("boot");
        create(&plain, &format!("--compressor none -D {}", text(out.path())));
        assert!(fs::read(&plain).unwrap() == fs::read(&boot).unwrap(), "v{version}");
        if version == "6" {
            assert!(contents(&boot, cache.path()) == contents(&plain, out.path()));
            ok(&["check", text(&boot), "-D", text(cache.path())]);
        }
    }
    let output = run(&["create", "-B", "x", "--blob-cache-dir", "/tmp", "--compressor", "zstd", "/"]);
    assert_eq!(output.status.code(), Some(2));
}
