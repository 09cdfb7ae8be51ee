//! `demo [DIR]`: packs a directory as a RAFS image, serves it with rafsd, boots a Linux guest that mounts it, and
//! shows that the guest reads the same bytes. Without DIR it packs a generated tree with a program in it.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use guest_tests::guest::{GuestImage, Vm, VmOptions};
use guest_tests::support::daemon::Daemon;
use guest_tests::support::image::Image;
use guest_tests::tree::generate::{TreeOptions, generate};
use guest_tests::tree::{Ignore, Kind, Tree, compare, entry, host};

/// What the guest runs: a look around for people, then the description that is compared.
const SCRIPT: &str = r#"
uname -srm
mount | grep virtiofs
df -h /mnt
ls -la /mnt | head -n 12
[ ! -x /mnt/bin/hello ] || /mnt/bin/hello
echo x > /mnt/new-file
echo ---
treewalk /mnt
"#;

fn total(tree: &Tree, kind: Kind) -> (usize, u64) {
    let of_kind = tree.values().filter(|e| e.kind == kind);
    of_kind.fold((0, 0), |(n, bytes), e| (n + 1, bytes + e.size.unwrap_or_default()))
}

fn main() -> Result<()> {
    let guest = GuestImage::get()?;
    let scratch = tempfile::tempdir()?;
    let source = match std::env::args_os().nth(1) {
        Some(dir) => PathBuf::from(dir),
        None => {
            let dir = scratch.path().join("tree");
            std::fs::create_dir(&dir)?;
            generate(&dir, TreeOptions { big_dir: 300, ..TreeOptions::default() })?;
            std::fs::create_dir(dir.join("bin"))?;
            let hello = dir.join("bin/hello");
            std::fs::write(
                &hello,
                "#!/bin/sh\necho \"hello from a program inside the image, in guest $(uname -n)\"\n",
            )?;
            std::fs::set_permissions(&hello, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            dir
        }
    };
    let want = host::describe(&source, 1 << 20, &["security.selinux"])
        .with_context(|| format!("describing {}", source.display()))?;
    let (files, bytes) = total(&want, Kind::Reg);
    println!("source:  {}: {} paths, {files} files, {bytes} bytes", source.display(), want.len());

    let start = Instant::now();
    let image = Image::build(&source, 6, &[])?;
    let mut blob_bytes = 0;
    for blob in std::fs::read_dir(&image.blobs)? {
        blob_bytes += blob?.metadata()?.len();
    }
    let meta = std::fs::metadata(&image.bootstrap)?.len();
    println!(
        "packed:  in {:.2?}: bootstrap {meta} bytes, blobs {blob_bytes} bytes (RAFS v6)",
        start.elapsed()
    );

    let daemon = Daemon::rafsd(&image.bootstrap, &image.blobs, 1, &[])?;
    println!("serving: rafsd (pid {}) on {}", daemon.process.id(), daemon.socket.display());

    let start = Instant::now();
    let options = VmOptions { mount: Some("ro".to_owned()), ..VmOptions::default() };
    let ending = Vm::run(&guest, &daemon.socket, SCRIPT, &options)?;
    let text = ending.text();
    let Some((shown, listing)) = text.split_once("---\n") else { bail!("the guest said only:\n{text}") };
    println!("guest:   booted, read everything and powered off in {:.1?}", start.elapsed());
    for line in shown.lines() {
        println!("  | {line}");
    }
    let got = entry::from_json_lines(listing)?;
    let differences = compare(&want, &got, Ignore { root_mtime: true, ..Ignore::default() });
    if !differences.is_empty() {
        bail!("the guest saw something else:\n{}", differences.join("\n"));
    }
    println!(
        "result:  {} paths and {files} files ({bytes} bytes) are the same in the guest: names, modes, owners, times, \
         links, xattrs, SHA-256",
        got.len()
    );
    Ok(())
}
