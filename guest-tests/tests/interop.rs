//! Every image of the interop corpus, served by `rafsd` and read through the front-end, shows its expected tree.

use guest_tests::frontend::device::Shape;
use guest_tests::frontend::walk::{WalkOptions, walk};
use guest_tests::frontend::{Client, Options};
use guest_tests::support::image::{Case, corpus};
use guest_tests::support::served::Served;
use guest_tests::tree::{Ignore, compare};

fn check(case: Case, turn: usize) -> Result<(), String> {
    let served = Served::serve(case, 3).map_err(|e| format!("{e:#}"))?;
    let fail = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}\n{}", served.log());
    // Each case is read by another kind of guest.
    let options = Options {
        queues: 1 + turn % 3,
        event_idx: turn.is_multiple_of(2),
        indirect: !turn.is_multiple_of(5),
        shape: [Shape::Pages, Shape::Scattered, Shape::Whole][turn % 3],
        ..Options::default()
    };
    let walked = WalkOptions {
        read_size: [128 << 10, 1 << 20, 4096, 8192 * 3][turn % 4],
        dir_size: [4096, 32 << 10][turn % 2],
        ..WalkOptions::default()
    };
    let mut client = Client::connect(&served.daemon.socket, &options).map_err(|e| fail("connecting", &e))?;
    let got = walk(&mut client, walked).map_err(|e| fail("walking", &e))?;
    client.unmount().map_err(|e| fail("unmounting", &e))?;
    let differences = compare(&served.case.expected, &got, Ignore::default());
    if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
}

#[test]
fn every_corpus_image_shows_its_tree() {
    let mut failed = Vec::new();
    let mut good = 0;
    for (turn, case) in corpus().unwrap().into_iter().enumerate() {
        let name = case.name.clone();
        match check(case, turn) {
            Ok(()) => good += 1,
            Err(e) => failed.push(format!("== {name}\n{e}")),
        }
    }
    assert!(failed.is_empty(), "{good} good, {} failed\n{}", failed.len(), failed.join("\n"));
    assert!(good >= 44, "only {good} cases in the corpus");
}
