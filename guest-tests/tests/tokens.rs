//! Debian's `docker-registry` behind a token service: tokens that end while they are used, that allow too little, that
//! nobody gives.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::servers::{DockerRegistry, TokenService, TokenSettings, installed};
use guest_tests::support::afar::{Afar, tail};
use guest_tests::support::daemon::Daemon;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// base64 of `u:p`.
const AUTH: &str = "dTpw";

/// A daemon that reads from that registry and keeps next to nothing.
fn daemon(afar: &Afar, registry: &DockerRegistry, more: &str) -> (Daemon, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    let text = format!(
        "version = 2\n[backend]\ntype = \"registry\"\n[backend.registry]\nhost = \"{}\"\nrepo = \"a/b\"\nscheme = \
         \"http\"\ndeadline = 10\n{more}\n[cache]\ntype = \"filecache\"\n[cache.filecache]\nwork_dir = \"{}\"\n\
         max_bytes = 65536\n[rafs]\nenable_xattr = true\n",
        registry.host,
        dir.path().join("cache").display()
    );
    std::fs::write(&config, text).unwrap();
    (Daemon::rafsd_configured(&afar.image.bootstrap, &config, &[]).unwrap(), dir)
}

#[test]
fn tokens_that_end_in_mid_use_are_renewed() {
    if !installed("docker-registry") || !installed("openssl") {
        return;
    }
    let afar = Afar::new();
    // What the service says of a life of two seconds: the truth, nothing, a lie.
    let said = [Some(2), None, Some(300)];
    let read = |says: Option<u64>| {
        let service = TokenService::start().unwrap();
        service.set(|s| {
            *s = TokenSettings { life: Duration::from_secs(2), says, auth: Some(AUTH.into()), ..s.clone() };
            s.refuses_post = says.is_none();
        });
        let registry = DockerRegistry::start_with_tokens(&afar.image.blobs, &service).unwrap();
        let (daemon, _dir) = daemon(&afar, &registry, &format!("auth = \"{AUTH}\""));
        let (begun, mut seed) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(8) {
            seed += 1;
            let failed = afar.read_at_random(&daemon, 100, seed);
            assert_eq!(failed, 0, "expires_in {says:?}\n{}", tail(&daemon));
        }
        let asked = service.asked();
        println!("expires_in {says:?}: {} reads, {} token requests", seed * 100, asked.len());
        // One token each one or two seconds, however many requests want one.
        assert!((4..=14).contains(&asked.len()), "expires_in {says:?}: {asked:#?}");
        for one in &asked {
            assert!(one.contains("scope=repository%3Aa%2Fb%3Apull") && one.contains("client_id="), "{one}");
        }
        let log = daemon.process.output();
        assert!(!log.contains(AUTH) && !log.contains("eyJ"), "credentials are in the log");
    };
    std::thread::scope(|scope| {
        for says in said {
            let read = &read;
            scope.spawn(move || read(says));
        }
    });
}

#[test]
fn no_token_and_one_that_allows_too_little_are_clear_errors_that_end_with_their_reason() {
    if !installed("docker-registry") || !installed("openssl") {
        return;
    }
    let afar = Afar::new();
    let service = TokenService::start().unwrap();
    service.set(|s| s.auth = Some(AUTH.into()));
    let registry = DockerRegistry::start_with_tokens(&afar.image.blobs, &service).unwrap();
    // What, what the daemon has, what the service does, and a part of the reason.
    type Refusal<'a> = (&'a str, &'a str, &'a dyn Fn(&mut TokenSettings), &'a str);
    let refusals: [Refusal<'_>; 5] = [
        ("no credentials", "", &|_| {}, "no token from http://127.0.0.1:"),
        ("wrong ones", "auth = \"d3Jvbmc6d3Jvbmc=\"", &|_| {}, "401"),
        ("too little", "", &|s| (s.auth, s.actions) = (None, Vec::new()), "repository:a/b:pull"),
        ("another action", "", &|s| (s.auth, s.actions) = (None, vec!["push".into()]), "insufficient_scope"),
        ("nothing for anybody", "", &|s| s.always = Some(403), "no token from http://127.0.0.1:"),
    ];
    for (what, more, change, part) in refusals {
        service.set(|s| {
            (s.auth, s.always, s.actions) = (Some(AUTH.into()), None, vec!["pull".into()]);
            change(s);
        });
        let (daemon, _dir) = daemon(&afar, &registry, more);
        assert_eq!(afar.read_at_random(&daemon, 4, 1), 4, "{what}");
        let log = tail(&daemon);
        assert!(log.contains(part), "{what}: no {part:?} in\n{log}");
        // All is well as soon as it is allowed.
        service.set(|s| (s.auth, s.always, s.actions) = (None, None, vec!["pull".into()]));
        let recovered = (0..50).any(|n| {
            std::thread::sleep(Duration::from_millis(100));
            afar.read_at_random(&daemon, 16, n) == 0
        });
        assert!(recovered, "{what}\n{}", tail(&daemon));
    }
}
