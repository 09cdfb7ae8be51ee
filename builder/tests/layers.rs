//! Layers: parents, whiteouts, chunk dictionaries, merging.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::codec::{Compressor, Digester};
use rafs::image::{CheckOptions, Image};
use rafs_builder::{
    BlobPlace, BuildError, ImageOptions, MergeOptions, OwnBlob, Patterns, PrefetchPolicy, Progress, Version,
    WhiteoutSpec,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use support::expected::{self, View};

const VERSIONS: [Version; 2] = [Version::V5, Version::V6];

fn sh(script: &str, dir: &Path) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(dir).status().unwrap();
    assert!(status.success(), "{script}");
}

/// Builds `source` into `out`, over `parent`, with chunks of `dict`.
fn build(
    source: &Path,
    out: &Path,
    name: &str,
    image: ImageOptions,
    parent: Option<&Path>,
    dict: Option<&Path>,
) -> Result<PathBuf, BuildError> {
    let mut options = support::options(source, out, image);
    options.bootstrap = rafs_builder::BootstrapTarget::File(out.join(name));
    options.parent = parent.map(Path::to_path_buf);
    options.chunk_dict = dict.map(Path::to_path_buf);
    rafs_builder::create(&options, &Arc::new(Progress::default()))?;
    Ok(out.join(name))
}

fn view(bootstrap: &Path, blobs: &Path) -> View {
    let image = Image::open(bootstrap).unwrap();
    image.check_with(CheckOptions { inode_digests: true }).unwrap();
    let threads = std::num::NonZeroUsize::MIN;
    rafs_builder::verify(&image, bootstrap, &BlobPlace::Directory(blobs.to_path_buf()), threads).unwrap();
    expected::of_image(&image)
}

fn merge(layers: Vec<PathBuf>, to: &Path) -> Result<Vec<String>, BuildError> {
    let own_blobs = vec![OwnBlob::default(); layers.len()];
    let options = MergeOptions {
        layers,
        own_blobs,
        parent: None,
        chunk_dict: None,
        prefetch_policy: PrefetchPolicy::None,
        prefetch_patterns: Patterns::default(),
        bootstrap: to.to_path_buf(),
        named_by_digest: false,
    };
    rafs_builder::merge(&options).map(|report| report.blobs)
}

const LOWER: &str = "
    mkdir -p keep/sub gone/in opaque/old type
    echo one > keep/a; echo two > keep/b; ln keep/a keep/a2; ln keep/a gone/a3
    echo x > gone/in/x; echo old > opaque/old/f; echo f > type/file; mkdir type/dir; echo in > type/dir/in
    seq 30000 > keep/large; cp keep/large keep/large2; ln -s target keep/link";

/// The upper layer; whiteouts are made by `mark`.
const UPPER: &str = "
    mkdir -p keep opaque type new/deep
    echo changed > keep/b; echo n > new/deep/n; ln new/deep/n new/n2
    echo new > opaque/new; mkdir type/file; echo z > type/file/z; echo file > type/dir
    seq 30000 > new/large; seq 29999 > new/other";

/// What is seen in the end, made in a copy of the lower layer.
const FINAL: &str = "
    rm -r gone opaque type/file type/dir; rm keep/large2
    cp -a ../upper/keep/b keep/b; cp -a ../upper/new ../upper/opaque .; rm -f opaque/.wh*
    cp -a ../upper/type/file ../upper/type/dir type/
    for d in . keep type opaque; do touch -r ../upper/$d $d; done";

struct Sources {
    dir: tempfile::TempDir,
}

impl Sources {
    fn new(mark: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        sh("mkdir lower upper", dir.path());
        sh(LOWER, &dir.path().join("lower"));
        sh(UPPER, &dir.path().join("upper"));
        sh(mark, &dir.path().join("upper"));
        sh("cp -a lower final", dir.path());
        sh(FINAL, &dir.path().join("final"));
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

const OCI_MARKS: &str = "touch .wh.gone keep/.wh.large2 opaque/.wh..wh..opq .wh.never";

fn assert_final(sources: &Sources, bootstrap: &Path, blobs: &Path) {
    expected::assert_same(&expected::of_directory(&sources.path("final")), &view(bootstrap, blobs));
}

#[test]
fn a_source_over_a_parent() {
    let overlayfs =
        "mknod gone c 0 0; mknod keep/large2 c 0 0; setfattr -n trusted.overlay.opaque -v y opaque";
    for (spec, marks) in [(WhiteoutSpec::Oci, OCI_MARKS), (WhiteoutSpec::Overlayfs, overlayfs)] {
        if spec == WhiteoutSpec::Overlayfs
            && (!support::is_root() || !Path::new("/usr/bin/setfattr").exists())
        {
            println!("overlayfs markers not tried: needs root and setfattr");
            continue;
        }
        let sources = Sources::new(marks);
        for version in VERSIONS {
            let out = tempfile::tempdir().unwrap();
            let image = ImageOptions { version, whiteout_spec: spec, ..ImageOptions::default() };
            let lower =
                build(&sources.path("lower"), out.path(), "lower", image.clone(), None, None).unwrap();
            let upper =
                build(&sources.path("upper"), out.path(), "upper", image, Some(&lower), None).unwrap();
            assert_final(&sources, &upper, out.path());
            let blobs = Image::open(&upper).unwrap().blobs().to_vec();
            assert_eq!(blobs.len(), 2);
            assert_eq!(blobs[0].id, Image::open(&lower).unwrap().blobs()[0].id);
            // new/large is in the lower blob already.
            assert!(blobs[1].uncompressed_size < 200_000, "{}", blobs[1].uncompressed_size);
        }
    }
}

#[test]
fn a_tar_over_a_parent() {
    let sources = Sources::new(OCI_MARKS);
    // tar keeps whole seconds and the root's time.
    sh(
        "find lower upper final -exec touch -h -d '@1700000000' {} +; tar -cf upper.tar -C upper .",
        sources.dir.path(),
    );
    for version in VERSIONS {
        let out = tempfile::tempdir().unwrap();
        let image = ImageOptions { version, ..ImageOptions::default() };
        let lower = build(&sources.path("lower"), out.path(), "lower", image.clone(), None, None).unwrap();
        let mut options = support::options(&sources.path("upper"), out.path(), image);
        options.source = rafs_builder::SourceKind::Tar(sources.path("upper.tar"));
        options.parent = Some(lower);
        rafs_builder::create(&options, &Arc::new(Progress::default())).unwrap();
        let mut want = expected::of_directory(&sources.path("final"));
        want.get_mut(&b"/"[..]).unwrap().mtime = (1_700_000_000, 0);
        expected::assert_same(&want, &view(&out.path().join("boot"), out.path()));
    }
}

#[test]
fn merged_layers_show_what_a_layered_build_shows() {
    let sources = Sources::new(OCI_MARKS);
    for version in VERSIONS {
        let out = tempfile::tempdir().unwrap();
        let image = ImageOptions { version, whiteout_spec: WhiteoutSpec::None, ..ImageOptions::default() };
        let lower = build(&sources.path("lower"), out.path(), "lower", image.clone(), None, None).unwrap();
        let upper = build(&sources.path("upper"), out.path(), "upper", image.clone(), None, None).unwrap();
        let merged = out.path().join("merged");
        let blobs = merge(vec![lower.clone(), upper.clone()], &merged).unwrap();
        assert_eq!(blobs.len(), 2);
        assert_final(&sources, &merged, out.path());
        // Inlined bootstraps: the blobs are known by their file names.
        let inlined: Vec<PathBuf> = ["lower", "upper"]
            .iter()
            .map(|name| {
                let mut options = support::options(&sources.path(name), out.path(), image.clone());
                options.bootstrap = rafs_builder::BootstrapTarget::Inline;
                options.toc = version == Version::V6;
                let report = rafs_builder::create(&options, &Arc::new(Progress::default())).unwrap();
                out.path().join(&report.blobs[0])
            })
            .collect();
        let blobs = merge(inlined.clone(), &merged).unwrap();
        let names: Vec<_> =
            inlined.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(blobs, names);
        assert_final(&sources, &merged, out.path());
        // A layer that is hidden completely leaves no blob behind.
        let hidden = merge(vec![lower, upper.clone(), upper], &merged).unwrap();
        assert_eq!(hidden.len(), 2);
        assert_final(&sources, &merged, out.path());
    }
}

#[test]
fn a_dictionary_saves_what_it_has() {
    let sources = Sources::new("true");
    for version in VERSIONS {
        let out = tempfile::tempdir().unwrap();
        let image = ImageOptions { version, whiteout_spec: WhiteoutSpec::None, ..ImageOptions::default() };
        let dict = build(&sources.path("lower"), out.path(), "dict", image.clone(), None, None).unwrap();
        let boot =
            build(&sources.path("upper"), out.path(), "boot", image.clone(), None, Some(&dict)).unwrap();
        expected::assert_same(&expected::of_directory(&sources.path("upper")), &view(&boot, out.path()));
        let blobs = Image::open(&boot).unwrap().blobs().to_vec();
        let dict_id = Image::open(&dict).unwrap().blobs()[0].id.clone();
        assert_eq!(blobs.len(), 2);
        assert!(blobs.iter().any(|blob| blob.id == dict_id));
        // Nothing new: no blob of its own.
        let same =
            build(&sources.path("lower"), out.path(), "same", image.clone(), None, Some(&dict)).unwrap();
        let ids: Vec<_> = Image::open(&same).unwrap().blobs().iter().map(|blob| blob.id.clone()).collect();
        assert_eq!(ids, [dict_id]);
        expected::assert_same(&expected::of_directory(&sources.path("lower")), &view(&same, out.path()));
        // Nothing in common: the dictionary's blob is not in the table.
        fs::create_dir(out.path().join("other")).unwrap();
        fs::write(out.path().join("other/f"), "unlike anything").unwrap();
        let other =
            build(&out.path().join("other"), out.path(), "o", image.clone(), None, Some(&dict)).unwrap();
        assert_eq!(Image::open(&other).unwrap().blobs().len(), 1);
        if version == Version::V6 {
            let sha256 = ImageOptions { digester: Digester::Sha256, ..image };
            let boot = build(&sources.path("lower"), out.path(), "s", sha256, None, Some(&dict)).unwrap();
            assert_eq!(Image::open(&boot).unwrap().blobs()[0].digester, Digester::Sha256, "no hit");
        }
    }
}

#[test]
fn images_that_do_not_go_together_are_refused() {
    let sources = Sources::new("true");
    let out = tempfile::tempdir().unwrap();
    let base = ImageOptions { version: Version::V5, ..ImageOptions::default() };
    let lower = build(&sources.path("lower"), out.path(), "lower", base.clone(), None, None).unwrap();
    for (image, word) in [
        (ImageOptions { version: Version::V6, ..base.clone() }, "version"),
        (
            ImageOptions { chunk_size: rafs_builder::ChunkSize::new(0x1000).unwrap(), ..base.clone() },
            "chunk size",
        ),
        (ImageOptions { repeatable: true, ..base.clone() }, "explicit_uidgid"),
        (ImageOptions { digester: Digester::Sha256, ..base.clone() }, "digester"),
        (ImageOptions { compressor: Compressor::Lz4Block, ..base.clone() }, "compressor"),
    ] {
        let error =
            build(&sources.path("upper"), out.path(), "x", image.clone(), Some(&lower), None).unwrap_err();
        assert!(
            matches!(&error, BuildError::Inconsistent { .. }) && error.to_string().contains(word),
            "{error}"
        );
        let alone = build(&sources.path("upper"), out.path(), "alone", image, None, None).unwrap();
        let error = merge(vec![lower.clone(), alone], &out.path().join("m")).unwrap_err();
        assert!(
            matches!(&error, BuildError::Inconsistent { .. }) && error.to_string().contains(word),
            "{error}"
        );
        assert!(!out.path().join("m").exists());
    }
    let output = Command::new(env!("CARGO_BIN_EXE_rafs-image"))
        .arg("merge")
        .arg("-B")
        .arg(out.path().join("m"))
        .args([&lower, &out.path().join("alone")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("message:"));
}

#[test]
fn the_corpus_layers_merge_as_the_reference_merged_them() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/corpus/interop");
    for case in ["v5-merge", "v6-merge"] {
        let case = corpus.join(case);
        let out = tempfile::tempdir().unwrap();
        let mut layers: Vec<_> =
            fs::read_dir(case.join("layers")).unwrap().map(|e| e.unwrap().path()).collect();
        layers.sort();
        let merged = out.path().join("merged");
        merge(layers, &merged).unwrap();
        expected::assert_same(
            &view(&case.join("bootstrap"), &case.join("blobs")),
            &view(&merged, &case.join("blobs")),
        );
        let ids =
            |path: &Path| Image::open(path).unwrap().blobs().iter().map(|b| b.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&merged), ids(&case.join("bootstrap")));
    }
}
