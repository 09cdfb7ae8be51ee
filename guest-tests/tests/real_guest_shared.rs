//! A real Linux guest with an image and a directory of the host side by side, as Kata has them: a build in an overlay
//! whose lower layer is the image and whose upper layer is the directory ends as it does on the host.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

use std::process::Command;

use guest_tests::guest::{GuestImage, Vm, VmOptions};
use guest_tests::support::api::ApiDaemon;
use guest_tests::support::image::Image;
use guest_tests::tree::generate::{TreeOptions, generate};

/// Copies up, whiteouts, an opaque directory, moves, links, archives, special files.
const BUILD: &str = r#"
    set -e
    mkdir build
    i=0
    while [ $i -lt 150 ]; do echo "int f$i(void) { return $i; }" > build/f$i.c; i=$((i + 1)); done
    cat build/*.c > build/all.c
    echo appended >> sizes/f4097
    chmod 600 sizes/f1
    chown 7:8 sizes/f4095
    mv sizes/f4096 build/moved
    ln build/moved build/hard
    ln -s ../sizes build/link
    rm -rf names
    mkdir names
    echo new > names/only
    rm sizes/f0
    tar -C build -cf build.tar .
    mkdir out
    tar -C out -xf build.tar
    # The first of two names last: overlayfs revalidates the other by it, on any upper layer that revalidates.
    rm build/hard
    rm -rf build
    mkfifo out/fifo
    mknod out/null c 1 3
    truncate -s 100000 out/sparse
    echo middle | dd of=out/sparse bs=1 seek=50000 conv=notrunc 2> /dev/null
    mkdir -p out/deep/er && mv out/deep out/renamed
    sed -i s/appended/replaced/ sizes/f4097
    # Only this file system: another one of the host may hang.
    sync -f .
"#;

/// Everything but times and the sizes of directories, which are no business of ours.
const LIST: &str = r#"
    find . ! -type d -exec stat -c '%A %h %u %g %s %n' {} + | sort
    find . -type d -exec stat -c '%A %u %g %n' {} + | sort
    find . -type f ! -name '*.tar' -exec sha256sum {} + | sort
"#;

#[test]
fn a_build_in_an_overlay_of_an_image_and_a_directory() {
    let source = tempfile::tempdir().unwrap();
    let options = TreeOptions { chunk: 0x2_0000, big_dir: 200, ..TreeOptions::default() };
    generate(source.path(), options).unwrap();
    let image = Image::build(source.path(), 6, &["--chunk-size", "0x20000"]).unwrap();
    let guest = GuestImage::get().unwrap();

    let daemon = ApiDaemon::start(&[]).unwrap();
    let shared = daemon.path("shared");
    for dir in ["shared", "shared/upper", "shared/work"] {
        std::fs::create_dir(daemon.path(dir)).unwrap();
    }
    let body = daemon.mount_body(&image.bootstrap, &image.blobs, "/image");
    let answer = daemon.call("POST", "/api/v1/mount?mountpoint=/image", Some(&body)).unwrap();
    assert_eq!(answer.status, 204, "{}", answer.body);
    let body = serde_json::json!({"fs_type": "passthrough_fs", "source": shared, "config": ""}).to_string();
    let answer = daemon.call("POST", "/api/v1/mount?mountpoint=/shared", Some(&body)).unwrap();
    assert_eq!(answer.status, 204, "{}", answer.body);

    let script = format!(
        "mkdir /tmp/merged
        mount -t overlay overlay -o lowerdir=/mnt/image,upperdir=/mnt/shared/upper,workdir=/mnt/shared/work \
            /tmp/merged || exit 9
        cd /tmp/merged
        ({BUILD}) || exit 8
        {LIST}
        cd /
        umount /tmp/merged || exit 7"
    );
    let options = VmOptions { mount: Some(String::new()), ..VmOptions::default() };
    let ending = Vm::run(&guest, &daemon.path("fs.sock"), &script, &options)
        .unwrap_or_else(|e| panic!("{e:#}\n{}", daemon.process.output()));
    assert_eq!(ending.status, 0, "{}\n{}", ending.text(), daemon.process.output());

    // The same with the same tools on the plain tree.
    let busybox = guest.kernel().with_file_name("busybox");
    let bin = tempfile::tempdir().unwrap();
    assert!(Command::new(&busybox).args(["--install", "-s"]).arg(bin.path()).status().unwrap().success());
    let out = Command::new(&busybox)
        .args(["sh", "-c", &format!("({BUILD}) || exit 8\n{LIST}")])
        .env("PATH", bin.path())
        .current_dir(source.path())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let want = String::from_utf8_lossy(&out.stdout);
    assert!(want.lines().count() > 500, "{want}");
    let got = ending.text();
    let (got, want): (Vec<_>, Vec<_>) = (got.lines().collect(), want.lines().collect());
    let missing: Vec<_> = want.iter().filter(|l| !got.contains(l)).take(20).collect();
    let extra: Vec<_> = got.iter().filter(|l| !want.contains(l)).take(20).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing {missing:#?}\nextra {extra:#?}");

    // What the guest made is on the host, where the next container or a backup finds it.
    let upper = shared.join("upper");
    assert_eq!(std::fs::read(upper.join("names/only")).unwrap(), b"new\n");
    assert!(upper.join("out/renamed/er").is_dir());
}
