//! What the tables of the file-system contract share: rows, one node of each kind, and the comparison.
#![allow(dead_code, missing_docs, reason = "each table takes a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

use std::collections::BTreeMap;

use guest_tests::frontend::client::ROOT;
use guest_tests::frontend::{Client, FrontendError};
use guest_tests::support::served::Served;

/// What is asked, opcode, node, body, room for the reply, and the errnos that are right.
pub type Row = (String, u32, u64, Vec<u8>, u32, &'static [i32]);

pub fn both(test: impl Fn(&Served)) {
    for name in ["v5-zstd-blake3", "v6-zstd-blake3"] {
        test(&Served::case(name, 2).unwrap());
    }
}

pub fn connect(f: &Served) -> Client {
    f.client().unwrap()
}

pub fn errno(result: Result<Vec<u8>, FrontendError>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(FrontendError::Errno { errno, .. }) => errno,
        Err(other) => panic!("{other}"),
    }
}

/// One node of each kind by a short name.
pub fn nodes(client: &mut Client) -> BTreeMap<&'static str, u64> {
    let paths = [
        ("reg", "/sizes/f4097"),
        ("empty", "/sizes/f0"),
        ("dir", "/names"),
        ("symlink", "/sym/rel"),
        ("char", "/dev/c"),
        ("block", "/dev/b"),
        ("fifo", "/dev/fifo"),
        ("socket", "/dev/sock"),
        ("xattrs", "/xa/user"),
    ];
    let mut out = BTreeMap::from([("root", ROOT)]);
    for (name, path) in paths {
        out.insert(name, client.resolve(path.as_bytes()).unwrap().node);
    }
    out
}

/// Checks rows of (what, opcode, node, body, room, errno) and shows all that are wrong at once.
pub fn check(client: &mut Client, rows: Vec<Row>) {
    let mut wrong = Vec::new();
    for (what, opcode, node, body, room, want) in rows {
        let got = errno(client.call(opcode, node, &body, room));
        if !want.contains(&got) {
            wrong.push(format!("{what}: errno {got}, not {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
