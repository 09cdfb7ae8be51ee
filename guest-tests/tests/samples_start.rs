//! The samples in configs/ start as they are: only hosts, sockets and directories are replaced, by the lists below.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::support::api::ApiDaemon;
use guest_tests::support::binaries::{ours, workspace};
use guest_tests::support::image::Case;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// What stands for other machines: nobody listens there, and nobody is asked for a start.
const NOBODY: &str = "127.0.0.1:9";
const HOSTS: [&str; 5] = [
    "registry.example.com",
    "blobs.example.com",
    "s3.eu-central-1.amazonaws.com",
    "oss-cn-hangzhou.aliyuncs.com",
    "http://127.0.0.1:4003/healthy",
];

fn sample(name: &str) -> String {
    std::fs::read_to_string(workspace().join("configs").join(name)).unwrap()
}

fn names() -> Vec<String> {
    let dir = std::fs::read_dir(workspace().join("configs")).unwrap();
    let mut names: Vec<_> = dir.map(|f| f.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A place for one sample: an image, and what the samples' names become there.
struct Place {
    dir: TempDir,
    image: Case,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), image: Case::named("v6-zstd-blake3").unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// All that is replaced in samples; the first that fits counts.
    fn replaced(&self, text: &str) -> String {
        let at = |name: &str| self.path(name).display().to_string();
        let image = &self.image.image;
        let mut text = text
            .replace("/var/lib/rafsd/blobs", &image.blobs.display().to_string())
            .replace("/var/lib/rafsd/app.boot", &image.bootstrap.display().to_string())
            .replace("--bootstrap app.boot", &format!("--bootstrap {}", image.bootstrap.display()))
            .replace("/var/lib/rafsd/cache", &at("cache"))
            .replace("/var/cache/rafsd", &at("cache"))
            .replace("/dev/vdb", &at("disk"))
            .replace("/etc/rafsd/app.toml", &at("config"))
            .replace("/run/rafsd/default.sock", "fs.sock")
            .replace("/run/rafsd/api.sock", "api.sock")
            .replace("/run/rafsd.sock", "fs.sock")
            .replace("${RUNTIME_DIRECTORY}", &self.dir.path().display().to_string())
            .replace("/usr/local/bin/rafsd", &ours("rafsd").unwrap().display().to_string());
        for host in HOSTS {
            let url = if host.contains("://") { "http://127.0.0.1:9/" } else { NOBODY };
            text = text.replace(host, url);
        }
        text
    }

    /// Starts a command line in words, the program first, and asks what is mounted.
    fn start(self, words: &[String], vars: &[(&str, &str)]) -> (ApiDaemon, Value) {
        let mut command = Command::new(ours("rafsd").unwrap());
        command.current_dir(self.dir.path()).args(&words[1..]).envs(vars.iter().copied());
        if !words.iter().any(|word| word.contains("--apisock")) {
            command.args(["--apisock", "api.sock"]);
        }
        let daemon = ApiDaemon::spawn(command, self.dir).unwrap_or_else(|e| panic!("{words:?}: {e:#}"));
        let answer = daemon.call("GET", "/api/v1/daemon", None).unwrap();
        let info = answer.json().unwrap();
        assert_eq!((answer.status, &info["state"]), (200, &Value::from("RUNNING")), "{words:?}");
        (daemon, info)
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// A disk with one blob as a GPT partition, as `localdisk` reads it.
fn disk(path: &Path, blob: &Path) {
    const SECTOR: usize = 512;
    let (data, id) = (std::fs::read(blob).unwrap(), blob.file_name().unwrap().to_str().unwrap().to_owned());
    let (first, sectors) = (40u64, data.len().div_ceil(SECTOR) as u64);
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    };
    let mut entry = [0u8; 128];
    entry[..16].copy_from_slice(&hex("af3dc60f838472478e793d69d8477de4"));
    // The second half of the id is the GUID without dashes; its first three fields are stored little-endian.
    let guid = hex(&id[32..]);
    for (to, from) in [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15].into_iter().enumerate() {
        entry[16 + to] = guid[from];
    }
    entry[32..40].copy_from_slice(&first.to_le_bytes());
    entry[40..48].copy_from_slice(&(first + sectors - 1).to_le_bytes());
    for (at, letter) in id[..32].encode_utf16().enumerate() {
        entry[56 + 2 * at..58 + 2 * at].copy_from_slice(&letter.to_le_bytes());
    }
    let mut entries = vec![0u8; 128 * 128];
    entries[..128].copy_from_slice(&entry);
    let crc = |bytes: &[u8]| {
        let shift = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        (!bytes.iter().fold(!0u32, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), shift))).to_le_bytes()
    };
    let last = first + sectors + 32;
    let mut header = [0u8; 92];
    header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
    for (at, value) in [(24, 1), (32, last), (40, 34), (48, last - 33), (72, 2)] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    header[80..84].copy_from_slice(&128u32.to_le_bytes());
    header[84..88].copy_from_slice(&128u32.to_le_bytes());
    header[88..92].copy_from_slice(&crc(&entries));
    let sum = crc(&header);
    header[16..20].copy_from_slice(&sum);
    let mut disk = vec![0u8; (usize::try_from(last).unwrap() + 1) * SECTOR];
    disk[SECTOR..SECTOR + 92].copy_from_slice(&header);
    disk[2 * SECTOR..2 * SECTOR + entries.len()].copy_from_slice(&entries);
    let start = usize::try_from(first).unwrap() * SECTOR;
    disk[start..start + data.len()].copy_from_slice(&data);
    std::fs::write(path, disk).unwrap();
}

#[test]
fn each_configuration() {
    let mut started = 0;
    for name in names() {
        let text = sample(&name);
        // Each says how it is used in its first line; JSON has no room for that.
        let line = match (name.strip_suffix(".v2.toml"), name.strip_suffix(".v1.json")) {
            (Some(_), _) => text.lines().next().unwrap().trim_start_matches("# ").to_owned(),
            (_, Some(_)) => {
                format!("rafsd virtiofs --sock /run/rafsd.sock --bootstrap app.boot --config configs/{name}")
            }
            _ => continue,
        };
        let place = Place::new();
        let config = place.path("config");
        std::fs::write(&config, place.replaced(&text)).unwrap();
        let blobs = std::fs::read_dir(&place.image.image.blobs).unwrap();
        let blob = blobs.map(|f| f.unwrap().path()).find(|f| f.extension().is_none()).unwrap();
        disk(&place.path("disk"), &blob);
        let line = place.replaced(&line).replace(&format!("configs/{name}"), config.to_str().unwrap());
        let (mut daemon, info) = place.start(&words(&line), &[]);
        let kind = name.split('.').next().unwrap().replace("dragonfly", "registry");
        let shown = &info["backend_collection"]["/"]["config"]["backend"]["type"];
        assert_eq!(*shown, Value::from(kind.as_str()), "{name}");
        if kind.starts_with("local") {
            let mut guest = daemon.guest("fs.sock").unwrap();
            let node = guest.resolve(b"/sizes/f4097").unwrap().node;
            assert_eq!(guest.read(node, 0, 0, 8192).unwrap().len(), 4097, "{name}");
        }
        daemon.process.terminate().unwrap();
        assert!(daemon.process.wait(std::time::Duration::from_secs(10)).unwrap().success(), "{name}");
        started += 1;
    }
    assert!(started >= 9, "{started}");
}

#[test]
fn the_unit() {
    let unit = sample("rafsd@.service");
    let find = |prefix: &str| unit.lines().find_map(|line| line.strip_prefix(prefix)).unwrap();
    let place = Place::new();
    std::fs::write(place.path("config"), place.replaced(&sample("localfs.v2.toml"))).unwrap();
    let line = place.replaced(&find("ExecStart=").replace("$ARGS", find("#   ARGS=")));
    let (daemon, info) = place.start(&words(&line), &[]);
    assert_eq!(info["backend_collection"]["/"]["backend_type"], "Rafs");
    // What reload sends, to what systemd calls the main process.
    let reload = find("ExecReload=").replace("$MAINPID", &daemon.process.id().to_string());
    assert!(Command::new("sh").args(["-c", &reload]).status().unwrap().success());
    assert_eq!(daemon.call("GET", "/api/v1/daemon", None).unwrap().status, 200);
    let copy = daemon.path("rafsd@app.service");
    let rafsd = ours("rafsd").unwrap();
    std::fs::write(&copy, unit.replace("/usr/local/bin/rafsd", rafsd.to_str().unwrap())).unwrap();
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output() {
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success() && !said.contains("rafsd@"), "{said}");
        }
        Err(error) => eprintln!("systemd-analyze is not here, the unit is not verified: {error}"),
    }
}

#[test]
fn the_daemon_set() {
    let pod = sample("kubernetes-daemonset.yaml");
    let list = |text: &str| -> Vec<String> {
        text.lines().map_while(|line| line.trim().strip_prefix("- ")).map(str::to_owned).collect()
    };
    let place = Place::new();
    let command = list(pod.split_once("command:\n").unwrap().1);
    let command: Vec<_> = command.iter().map(|word| place.replaced(word)).collect();
    let cache = place.replaced(pod.split_once("value: ").unwrap().1.lines().next().unwrap());
    let probe = pod.lines().find_map(|line| line.trim().strip_prefix("command: [")).unwrap();
    let probe = place.replaced(&probe.trim_end_matches(']').replace(['"', ','], ""));
    let (daemon, _) = place.start(&command, &[("RAFSD_CACHE_DIR", &cache)]);
    let probe = words(&probe);
    assert_eq!(probe[0], "rafsd");
    let mut ctl = Command::new(ours("rafsd").unwrap());
    let out = ctl.current_dir(daemon.dir.path()).args(&probe[1..]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // What it says of adding machines and images.
    let added =
        daemon.call("POST", "/api/v1/sockets", Some(r#"{"socket": "t1.sock", "root": "/t1"}"#)).unwrap();
    assert_eq!(added.status, 204, "{}", added.body);
    assert_eq!(daemon.mount("POST", "/t1", &Case::named("v6-zstd-blake3").unwrap()).unwrap(), 204);
    daemon.guest("t1.sock").unwrap().resolve(b"/names").unwrap();
}

/// The commands of configs/README.md, from making the image to serving it.
#[test]
fn the_readme() {
    let readme = sample("README.md");
    let script = readme.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0;
    let (before, serve) = script.trim_end().rsplit_once('\n').unwrap();
    let place = Place::new();
    std::fs::create_dir_all(place.path("rootfs/etc")).unwrap();
    std::fs::write(place.path("rootfs/etc/hostname"), "app\n").unwrap();
    std::fs::create_dir(place.path("configs")).unwrap();
    let here = |text: &str| {
        let lib = place.path("lib").display().to_string();
        text.replace("/var/lib/rafsd", &lib).replace("/run/rafsd.sock", "fs.sock")
    };
    std::fs::write(place.path("configs/localfs.v2.toml"), here(&sample("localfs.v2.toml"))).unwrap();
    let path = std::env::var("PATH").unwrap();
    let ours_first = format!("{}:{path}", ours("rafsd").unwrap().parent().unwrap().display());
    let mut shell = Command::new("sh");
    shell.current_dir(place.dir.path()).env("PATH", &ours_first).args(["-e", "-c", &here(before)]);
    let out = shell.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let serve = words(&here(serve));
    let (daemon, _) = place.start(&serve, &[]);
    let mut guest = daemon.guest("fs.sock").unwrap();
    let node = guest.resolve(b"/etc/hostname").unwrap().node;
    assert_eq!(guest.read(node, 0, 0, 4096).unwrap(), b"app\n");
}

/// Scripts without their arguments say how they are used, and are scripts.
#[test]
fn scripts_explain_themselves() {
    let scripts = names().into_iter().filter(|name| name.ends_with(".sh"));
    for name in scripts {
        let path = workspace().join("configs").join(&name);
        let out = Command::new("sh").arg(&path).output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{name}: {said}");
        assert!(
            said.starts_with(&format!("{name} SOCKET TAG ")) && said.contains("mount -t virtiofs"),
            "{said}"
        );
        assert!(Command::new("sh").arg("-n").arg(&path).status().unwrap().success(), "{name}");
    }
}

/// Every metric that samples and documents name is one of a daemon that has served something.
#[test]
fn metrics_that_are_named_exist() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    assert_eq!(daemon.mount("POST", "/a", &Case::named("v6-zstd-blake3").unwrap()).unwrap(), 204);
    let case = Case::named("v6-zstd-blake3").unwrap();
    let afar = sample("registry.v1.json").replace("registry.example.com", NOBODY);
    let body = json!({"fs_type": "rafs", "source": case.image.bootstrap,
        "config": afar.replace("/var/lib/rafsd/cache", daemon.path("afar").to_str().unwrap())});
    let mount = "/api/v1/mount?mountpoint=/afar";
    assert_eq!(daemon.call("POST", mount, Some(&body.to_string())).unwrap().status, 204);
    let mut guest = daemon.guest("fs.sock").unwrap();
    let node = guest.resolve(b"/a/sizes/f4097").unwrap().node;
    guest.read(node, 0, 0, 8192).unwrap();
    let page = daemon.call("GET", "/metrics", None).unwrap().body;
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let there: BTreeSet<&str> = samples.map(|line| line.split(['{', ' ']).next().unwrap()).collect();
    let mut found = 0;
    for name in
        ["configs/grafana-dashboard.json", "configs/prometheus.yml", "docs/operations.md", "docs/afar.md"]
    {
        let text = std::fs::read_to_string(workspace().join(name)).unwrap();
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            if word.starts_with("rafsd_") {
                // A histogram is named by its family, several metrics by what they begin with.
                let family = format!("{word}_count");
                let is = |known: &&str| {
                    *known == word || *known == family || word.ends_with('_') && known.starts_with(word)
                };
                assert!(there.iter().any(is), "{name} names {word}");
                found += 1;
            }
        }
    }
    assert!(found >= 15, "{found}");
}
