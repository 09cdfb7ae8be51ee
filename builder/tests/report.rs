//! `rafs-image report`: figures that add up, and a page that a person uses in a browser.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs_builder::{ImageOptions, Version};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::browser::Browser;
use support::{Built, build};

fn run(bootstrap: &Path, flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rafs-image")).arg("report").arg(bootstrap).args(flags).output().unwrap()
}

fn json_of(bootstrap: &Path) -> Value {
    let output = run(bootstrap, &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn page_of(image: &Built) -> PathBuf {
    let page = image.dir.path().join("page.html");
    let output = run(&image.bootstrap(), &["--html", page.to_str().unwrap()]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    page
}

fn sum(rows: &Value, key: &str) -> u64 {
    rows.as_array().unwrap().iter().map(|row| row[key].as_u64().unwrap()).sum()
}

/// A tree whose names try to be markup.
fn hostile_source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for (parent, name, size) in [
        ("usr/lib", &b"libbig.so.1"[..], 600_000),
        ("usr/lib/deep", b"inner.bin", 200_000),
        ("usr/bin", b"tool", 120_000),
        ("etc", b"passwd", 2_000),
        // "/</script><img ...": the slash is the one between directory and file.
        ("<", b"script><img src=x onerror=\"document.title='pwned'\">", 90_000),
        ("odd", b"'\"><script>document.title='pwned'<", 50_000),
        ("odd", b"bytes\xff\xfe\n\x1b[31m", 40_000),
        ("odd", "txt.\u{202e}exe".as_bytes(), 30_000),
    ] {
        let path = root.join(parent);
        fs::create_dir_all(&path).unwrap();
        let seed = name.iter().map(|b| u64::from(*b)).sum();
        fs::write(path.join(OsStr::from_bytes(name)), support::source::noise(seed, size)).unwrap();
    }
    fs::write(root.join("etc/copy"), fs::read(root.join("usr/bin/tool")).unwrap()).unwrap();
    fs::write(root.join("etc/text.txt"), "word ".repeat(30_000)).unwrap();
    fs::hard_link(root.join("etc/passwd"), root.join("etc/shadow")).unwrap();
    dir
}

#[test]
fn the_figures_add_up() {
    let source = tempfile::tempdir().unwrap();
    support::source::make(source.path(), 500);
    let summaries: Vec<Value> = [Version::V5, Version::V6]
        .into_iter()
        .map(|version| {
            let image = build(source.path(), ImageOptions { version, ..ImageOptions::default() });
            let value = json_of(&image.bootstrap());
            let totals = &value["totals"];
            for rows in ["classes", "endings"] {
                for (key, total) in
                    [("files", "files"), ("file_bytes", "file_bytes"), ("stored_bytes", "stored_bytes")]
                {
                    assert_eq!(sum(&value[rows], key), totals[total].as_u64().unwrap(), "{rows} {key}");
                }
            }
            assert_eq!(value["layers"][0]["used_chunks"], totals["chunks"]);
            assert_eq!(value["layers"][0]["unused_bytes"], 0);
            assert_eq!(sum(&value["layers"], "used_stored_bytes"), totals["stored_bytes"].as_u64().unwrap());
            let plain = totals["file_bytes"].as_u64().unwrap();
            let unique = sum(&value["layers"], "used_plain_bytes");
            assert_eq!(plain, unique + totals["deduplicated_bytes"].as_u64().unwrap());
            assert_eq!(totals["deduplicated_bytes"], image.report.deduplicated_bytes);
            assert_eq!(totals["hardlinks"], 3);
            assert_eq!(value["largest"][0]["path"], "/sparse");
            let zeros = &value["duplicates"][0];
            assert_eq!((&zeros["zeros"], &zeros["copies"]), (&json!(true), &json!(1)));
            assert!(zeros["users"].as_array().unwrap().contains(&json!("/sparse")));
            json!([totals["files"], totals["file_bytes"], totals["chunks"], value["classes"]])
        })
        .collect();
    assert_eq!(summaries[0], summaries[1], "both versions hold the same");
}

#[test]
fn text_names_what_matters() {
    let source = hostile_source();
    let image = build(source.path(), ImageOptions::default());
    let output = run(&image.bootstrap(), &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "boot: RAFS v6, zstd, blake3, chunks of 1.0 MiB",
        "10 files (1 further names)",
        "/usr/lib/libbig.so.1",
        "117 KiB     117 KiB      2x     2  /etc/copy, /usr/bin/tool",
        "/odd/bytes\\xff\\xfe\\n\\u{1b}[31m",
        "txt.\\u{202e}exe",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains('\x1b'));
}

#[test]
fn a_person_finds_the_way_around_the_page() {
    let source = hostile_source();
    let image = build(source.path(), ImageOptions::default());
    let page = page_of(&image);
    let html = fs::read_to_string(&page).unwrap();
    for outside in ["http://", "https://", "src=\"", "url(", "@import"] {
        assert!(!html.contains(outside), "{outside}");
    }
    let mut browser = Browser::open(&page);
    browser.wait("document.querySelectorAll('#treemap .cell').length > 8");
    // What is there to see.
    assert_eq!(browser.eval("document.title"), "boot – where the bytes are");
    assert_eq!(
        browser.eval("[...document.querySelectorAll('h2')].map((h) => h.textContent)"),
        json!([
            "Where the bytes are",
            "Layers",
            "Compression by file type",
            "Largest files",
            "Duplicate chunks"
        ])
    );
    let tiles = browser.eval("document.querySelector('.tiles').innerText");
    for part in ["Files\n10", "1.3 MiB", "Saved by sharing\n117 KiB"] {
        assert!(tiles.as_str().unwrap().contains(part), "{part}: {tiles}");
    }
    // Names are text, and text only.
    assert_eq!(browser.eval("[document.images.length, document.scripts.length]"), json!([0, 2]));
    let shown = browser.eval("document.body.innerText");
    for name in [
        "/</script><img src=x onerror=\"document.title='pwned'\">",
        "/odd/'\"><script>document.title='pwned'<",
        "/odd/bytes\\xff\\xfe\\n\\u{1b}[31m",
        "/odd/txt.\\u{202e}exe",
    ] {
        assert!(shown.as_str().unwrap().contains(name), "{name}");
    }
    // No script but the page's own could run even if a name got through.
    let injected = "(() => { const s = document.createElement('script'); s.textContent = 'window.injected = 1'; \
                    document.body.append(s); return window.injected ?? null; })()";
    assert_eq!(browser.eval(injected), Value::Null);
    // By mouse: into a directory, and back by the path above the map.
    let at = "document.querySelector('#crumbs [aria-current]').textContent";
    let cell = |path: &str| format!("#treemap .cell[aria-label^=\"{path} \"]");
    assert_eq!(browser.eval(at), "/");
    browser.click(&cell("/usr/lib"));
    assert_eq!(browser.eval(at), "lib");
    let labels = "[...document.querySelectorAll('#treemap .cell')].map((c) => c.getAttribute('aria-label').split(' ')[0])";
    assert_eq!(
        browser.eval(labels),
        json!(["/usr/lib/libbig.so.1", "/usr/lib/deep", "/usr/lib/deep/inner.bin"])
    );
    browser.click("#crumbs button:nth-of-type(2)");
    assert_eq!(browser.eval(at), "usr");
    browser.eval("history.back()");
    browser.wait(&format!("{at} === 'lib'"));
    browser.eval("location.hash = '#0'");
    browser.wait(&format!("{at} === '/'"));
    // By keyboard alone: the map is one stop, arrows move inside, Enter and Escape zoom.
    let focused = "document.activeElement.getAttribute('aria-label')?.split(' ')[0]";
    browser.eval("document.querySelector('#crumbs [aria-current]').focus()");
    browser.key("Tab");
    assert_eq!(browser.eval(focused), "/usr");
    browser.key("ArrowRight");
    assert_eq!(browser.eval(focused), "/etc");
    browser.key("ArrowLeft");
    browser.key("ArrowDown");
    assert_eq!(browser.eval(focused), "/usr/lib");
    browser.key("Enter");
    assert_eq!((browser.eval(at), browser.eval(focused)), (json!("lib"), json!("/usr/lib/libbig.so.1")));
    browser.key("Escape");
    assert_eq!((browser.eval(at), browser.eval(focused)), (json!("usr"), json!("/usr/lib")));
    assert!(
        browser.eval("document.getElementById('detail').textContent").as_str().unwrap().contains("stored")
    );
    // Areas by bytes before compression: the repetitive text grows.
    browser.eval("location.hash = '#0'");
    browser.wait(&format!("{at} === '/'"));
    let area = format!(
        "(() => {{ const r = document.querySelector({}).getBoundingClientRect(); return r.width * r.height; }})()",
        json!(cell("/etc"))
    );
    let before = browser.eval(&area).as_f64().unwrap();
    browser.click("input[value=plain] + span");
    let after = browser.eval(&area).as_f64().unwrap();
    assert!(after > before * 1.3, "{before} {after}");
    browser.click("input[value=layer] + span");
    assert!(
        browser.eval("document.getElementById('legend').innerText").as_str().unwrap().contains("layer 0")
    );
    // Cells lie inside the map, and those of one directory do not cover each other.
    let overlaps = "(() => { const m = document.getElementById('treemap').getBoundingClientRect(); \
        const r = [...document.querySelectorAll('#treemap .cell[aria-level=\"1\"]')].map((c) => c.getBoundingClientRect()); \
        const out = r.filter((a) => a.left < m.left || a.right > m.right + 1 || a.top < m.top || a.bottom > m.bottom + 1); \
        const both = r.filter((a, i) => r.some((b, j) => i < j && a.left < b.right - 1 && b.left < a.right - 1 && \
        a.top < b.bottom - 1 && b.top < a.bottom - 1)); return [r.length, out.length, both.length]; })()";
    assert_eq!(browser.eval(overlaps), json!([4, 0, 0]));
    // Light and dark.
    let colours = "(() => { const s = getComputedStyle(document.documentElement); return [s.backgroundColor, s.color]; })()";
    let mut themes = Vec::new();
    for theme in ["light", "dark"] {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": theme}]});
        browser.call("Emulation.setEmulatedMedia", features);
        themes.push(browser.eval(colours));
    }
    assert_eq!(themes[0][0], "rgb(246, 247, 249)");
    assert_eq!(themes[1][0], "rgb(20, 23, 27)");
}

#[test]
fn many_files_make_no_heavy_page() {
    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("many.tar");
    fs::write(&tar, support::tar::archive(300, 100)).unwrap();
    let options = rafs_builder::CreateOptions {
        source: rafs_builder::SourceKind::Tar(tar),
        ..support::options(dir.path(), dir.path(), ImageOptions::default())
    };
    rafs_builder::create(&options, &Default::default()).unwrap();
    let page = dir.path().join("page.html");
    let output = run(&dir.path().join("boot"), &["--html", page.to_str().unwrap()]);
    assert!(output.status.success());
    let size = fs::metadata(&page).unwrap().len();
    assert!(size < 3_000_000, "{size}");
    let mut browser = Browser::open(&page);
    browser.wait("document.querySelectorAll('#treemap .cell').length > 100");
    let cells = browser.eval("document.querySelectorAll('#treemap .cell').length").as_u64().unwrap();
    assert!(cells <= 2500, "{cells}");
    assert!(browser.eval("document.querySelector('.tiles').innerText").as_str().unwrap().contains("30,000"));
}

#[test]
fn odd_images_have_pages_too() {
    // Nothing but a root; and one empty file.
    for name in [None, Some("empty")] {
        let source = tempfile::tempdir().unwrap();
        if let Some(name) = name {
            fs::write(source.path().join(name), "").unwrap();
        }
        let image = build(source.path(), ImageOptions::default());
        let mut browser = Browser::open(&page_of(&image));
        browser.wait("document.querySelector('#treemap p') !== null");
        assert!(run(&image.bootstrap(), &[]).status.success());
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("junk"), "junk").unwrap();
    let page = dir.path().join("page.html");
    let output = run(&dir.path().join("junk"), &["--html", page.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!page.exists());
}
