//! The real guest against an independent daemon: proves the guest and `treewalk`, not our daemon.
//! It needs virtiofsd and so is no part of `make test`.

use guest_tests::guest::{GuestImage, Vm, VmOptions};
use guest_tests::support::daemon::Daemon;
use guest_tests::tree::generate::{TreeOptions, generate};
use guest_tests::tree::{Ignore, compare, entry, host};

#[test]
#[ignore = "needs virtiofsd: make test-peer builds it"]
fn a_guest_sees_what_the_host_shows() {
    let source = tempfile::tempdir().unwrap();
    generate(source.path(), TreeOptions { big_dir: 500, ..TreeOptions::default() }).unwrap();
    let daemon =
        Daemon::virtiofsd(source.path()).unwrap().expect("virtiofsd is not installed: make bench-peer");
    let image = GuestImage::get().unwrap();
    let want = host::describe(source.path(), 1 << 20, &["security.selinux"]).unwrap();
    let ending = Vm::run(&image, &daemon.socket, "treewalk /mnt", &VmOptions::default()).unwrap();
    assert_eq!(ending.status, 0, "{}", ending.text());
    let got = entry::from_json_lines(&ending.text()).unwrap();
    let differences = compare(&want, &got, Ignore::default());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
