//! A real Linux guest on `rafsd`: what it sees of an image is what the host shows of the image's source.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

use std::sync::OnceLock;

use guest_tests::guest::{Ending, GuestImage, Vm, VmOptions};
use guest_tests::support::daemon::Daemon;
use guest_tests::support::image::Image;
use guest_tests::tree::generate::{TreeOptions, generate};
use guest_tests::tree::{Ignore, Tree, compare, entry, host};
use tempfile::TempDir;

struct Source {
    dir: TempDir,
    tree: Tree,
}

/// The generated tree, made once for all tests of this program.
fn source() -> &'static Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        generate(dir.path(), TreeOptions { chunk: 0x2_0000, ..TreeOptions::default() }).unwrap();
        let tree = host::describe(dir.path(), 1 << 20, &["security.selinux"]).unwrap();
        assert!(tree.len() > 5100);
        Source { dir, tree }
    })
}

fn serve(version: u32) -> (Image, Daemon) {
    let chunk = ["--chunk-size", "0x20000"];
    let image = Image::build(source().dir.path(), version, &chunk).unwrap();
    let daemon = Daemon::rafsd(&image.bootstrap, &image.blobs, 2, &[]).unwrap();
    (image, daemon)
}

fn run(daemon: &Daemon, script: &str, options: &VmOptions) -> Ending {
    let image = GuestImage::get().unwrap();
    match Vm::run(&image, &daemon.socket, script, options) {
        Ok(ending) => ending,
        Err(e) => panic!("{e:#}\ndaemon:\n{}", daemon.process.output()),
    }
}

fn assert_same(output: &str, what: &str) {
    let got = entry::from_json_lines(output).unwrap_or_else(|e| panic!("{what}: {e:#}\n{output:.3000}"));
    let differences = compare(&source().tree, &got, Ignore { root_mtime: true, ..Ignore::default() });
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}

fn shows_the_tree(version: u32) {
    let (_image, daemon) = serve(version);
    // 1 MiB reads straight past the page cache's readahead come from a queue with room for 256 pages.
    let ending = run(&daemon, "treewalk /mnt 1048576", &VmOptions::default());
    assert_eq!(ending.status, 0, "{}", ending.text());
    assert_same(&ending.text(), &format!("v{version}"));
}

#[test]
fn v5_tree_in_a_guest() {
    shows_the_tree(5);
}

#[test]
fn v6_tree_in_a_guest() {
    shows_the_tree(6);
}

/// Every way to write fails, with EROFS on a read-only mount and without one too, and changes nothing.
#[test]
fn writes_are_refused() {
    let (_image, daemon) = serve(6);
    let script = r#"
        mkdir /tmp/m
        for options in ro rw; do
            mount -t virtiofs -o $options rafs /tmp/m || exit 9
            cd /tmp/m
            for try in 'echo x > new' 'echo x >> sizes/f4096' 'mkdir d' 'rm sizes/f1' 'mv sizes/f1 sizes/g' \
                'ln sizes/f1 hard' 'ln -s a b' 'chmod 777 sizes/f1' 'chown 5 sizes/f1' 'touch sizes/f1' \
                'mknod n c 1 3' 'rmdir "names/empty dir"' 'truncate -s 1 sizes/f4096'; do
                if message=$(sh -c "$try" 2>&1); then
                    echo "$options: done: $try"
                else
                    case $message in
                    *'Read-only file system'*) echo "$options: refused" ;;
                    *) echo "$options: other: $try: $message" ;;
                    esac
                fi
            done
            cd /
            umount /tmp/m || exit 8
        done
    "#;
    let ending = run(&daemon, script, &VmOptions { mount: None, ..VmOptions::default() });
    assert_eq!(ending.status, 0, "{}", ending.text());
    let text = ending.text();
    assert_eq!(text.matches("ro: refused").count(), 13, "{text}");
    assert_eq!(text.matches("rw: refused").count(), 13, "{text}");
    assert_eq!(text.lines().count(), 26, "{text}");
}

/// Direct reads of 1 MiB are one request each on a queue of 1024, and are right on one of 128 as well.
#[test]
fn large_reads_on_both_queue_sizes() {
    let (_image, daemon) = serve(6);
    let name = format!("/mnt/sizes/f{}", 0x2_0000 * 5 + 4097);
    let want = &source().tree[name.trim_start_matches("/mnt").as_bytes()];
    for queue_size in [1024, 128] {
        let script = format!("dd if={name} bs=1M iflag=direct 2>/dev/null | sha256sum && sha256sum {name}");
        let ending = run(&daemon, &script, &VmOptions { queue_size, ..VmOptions::default() });
        let digests: Vec<String> =
            ending.text().lines().map(|l| l.split(' ').next().unwrap().to_owned()).collect();
        let digest = want.sha256.clone().unwrap();
        assert_eq!(digests, [digest.clone(), digest], "queue size {queue_size}: {}", ending.text());
    }
}

/// The reset button (a second INIT without DESTROY), many mounts, a clean end, and a second machine: one daemon.
#[test]
fn reset_remounts_and_a_second_machine() {
    let (_image, mut daemon) = serve(5);
    let image = GuestImage::get().unwrap();
    let options = VmOptions { mount: Some(String::new()), ..VmOptions::default() };
    let script = r#"
        for i in 1 2 3 4 5 6 7 8; do
            sha256sum < /mnt/sizes/f4097 || exit 7
            umount /mnt || exit 8
            mount -t virtiofs -o ro rafs /mnt || exit 9
        done
        echo ready
        while [ ! -e /tmp/never ]; do sleep 1; done
    "#;
    let mut vm = Vm::boot(&image, &daemon.socket, script, &[], &options).unwrap();
    vm.wait_for("ready", 1).unwrap();
    vm.monitor("system_reset").unwrap();
    vm.wait_for("ready", 2).unwrap_or_else(|e| panic!("{e:#}\n{}", daemon.process.output()));
    let text = String::from_utf8_lossy(&vm.output()).into_owned();
    let digest = source().tree[b"/sizes/f4097".as_slice()].sha256.clone().unwrap();
    assert_eq!(text.matches(&digest).count(), 16, "{text}");
    // Power cut: the daemon loses its front-end in mid-flight.
    drop(vm);
    assert_eq!(daemon.process.ended().unwrap(), None, "{}", daemon.process.output());
    let ending = run(&daemon, "treewalk /mnt", &VmOptions::default());
    assert_eq!(ending.status, 0, "{}", ending.text());
    assert_same(&ending.text(), "second machine");
    assert_eq!(daemon.process.ended().unwrap(), None, "{}", daemon.process.output());
}
