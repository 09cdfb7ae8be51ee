//! The HTTP API: every route with what it answers and what it refuses. Connections are in `api_wire.rs`, mounts in
//! `api_mounts.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::support::api::ApiDaemon;
use guest_tests::support::image::Case;
use serde_json::{Value, json};

#[test]
fn refusals_of_the_contract() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let case = Case::named("v6-zstd-blake3").unwrap();
    let good = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "x");
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from} is not in {good}");
        good.replace(from, to)
    };
    let boot = case.image.bootstrap.to_str().unwrap();
    let rows: Vec<(&str, &str, Option<String>, u16, &str)> = vec![
        ("GET", "/api/v1/nothing", None, 404, "NoRoute"),
        ("GET", "/api/v1/daemon/", None, 404, "NoRoute"),
        ("POST", "/api/v1/daemon", Some("{}".into()), 400, "BadRequest"),
        ("PUT", "/api/v1/daemon", None, 400, "BadRequest"),
        ("PUT", "/api/v1/daemon", Some(r#"{"log_level":"loud"}"#.into()), 500, "Configure(ResponsePayloadType)"),
        ("PUT", "/api/v1/daemon", Some("{}".into()), 400, "ParseBody(Error(\"missing field `log_level`\""),
        ("GET", "/api/v1/daemon", Some("x".into()), 400, "BadRequest"),
        ("get", "/api/v1/daemon", None, 400, "BadRequest"),
        ("OPTIONS", "/api/v1/daemon", None, 400, "BadRequest"),
        ("GET", "//api/v1/daemon", None, 404, "NoRoute"),
        ("GET", "/api/v1/%64aemon", None, 404, "NoRoute"),
        ("PUT", "/api/v1/daemon/exit", Some("{}".into()), 400, "BadRequest"),
        ("PUT", "/api/v1/daemon/start", None, 400, r#"Configure(DaemonAbnormal(UnexpectedEvent("Start")))"#),
        ("PUT", "/api/v1/daemon/fuse/takeover", None, 400, r#"Upgrade(DaemonAbnormal(UnexpectedEvent("Takeover")))"#),
        ("PUT", "/api/v1/daemon/fuse/sendfd", None, 501, "Upgrade(DaemonAbnormal(Unsupported))"),
        ("PUT", "/api/v2/blobs", Some("{}".into()), 501, "CreateBlobObject(DaemonAbnormal(Unsupported))"),
        ("DELETE", "/api/v2/blobs?blob_id=x", None, 501, "Unsupported"),
        ("GET", "/api/v2/blobs?domain_id=x", None, 501, "Unsupported"),
        ("GET", "/api/v1/metrics", None, 404, "GlobalMetrics(Metrics(Stats(NoCounter)))"),
        ("GET", "/api/v1/metrics/files?id=/none", None, 404, "NoCounter"),
        ("GET", "/api/v1/daemon/backend", None, 400, "QueryString(\"'mountpoint' should be specified in query string\")"),
        ("POST", "/api/v1/mount", Some(good.clone()), 400, "QueryString("),
        ("POST", "/api/v1/mount?mountpoint=/a", None, 400, "BadRequest"),
        ("POST", "/api/v1/mount?mountpoint=/a", Some(r#"{"source":"/x"}"#.into()), 400, "ParseBody(Error(\"missing field `config`\", line: 1, column: 15))"),
        ("POST", "/api/v1/mount?mountpoint=a", Some(good.clone()), 500, "VFS failed to handle request, PathWalk("),
        ("POST", "/api/v1/mount?mountpoint=/a/../b", Some(good.clone()), 500, "Invalid argument"),
        ("POST", "/api/v1/mount?mountpoint=/a", Some(with("\"rafs\"", "\"foo\"")), 500,
            "invalid argument `only 'rafs' and 'passthrough_fs' are supported, but foo was specified`"),
        ("POST", "/api/v1/mount?mountpoint=/a", Some(with(boot, "/nowhere")), 500,
            "RAFS failed to handle request, Failed to fill superBlock: No such file or directory (os error 2)`"),
        ("POST", "/api/v1/mount?mountpoint=/a", Some(json!({"source": boot, "config": "{"}).to_string()), 500,
            "Failed to load config: failed to parse configuration information`"),
        ("POST", "/api/v1/mount?mountpoint=/a",
            Some(json!({"source": boot, "config": "version = 2\nbackend = {type = \"localfs\", localfs = {dir = \"/\"}}"}).to_string()),
            500, "Failed to load config: no configuration information for rafs`"),
        ("POST", "/api/v1/mount?mountpoint=/a",
            Some(with(case.image.blobs.to_str().unwrap(), daemon.dir.path().to_str().unwrap())), 500,
            "RAFS failed to handle request, Failed to create device: Input/output error (os error 5)`"),
        ("POST", "/api/v1/mount?mountpoint=/a",
            Some(good.replacen('{', r#"{"prefetch_files":["rel"],"#, 1)), 500, "invalid prefetch file list"),
        ("PUT", "/api/v1/mount?mountpoint=/a", Some(good.clone()), 500, "object or filesystem doesn't exist"),
        ("DELETE", "/api/v1/mount?mountpoint=/a", None, 500, "object or filesystem doesn't exist"),
        ("POST", "/api/v1/mount?mountpoint=/%ff", Some(good.clone()), 400, "is not UTF-8"),
        ("POST", "/api/v1/mount?mountpoint=", Some(good.clone()), 500, "PathWalk("),
        ("GET", "/api/v1/daemon/backend?mountpoint=/none", None, 500, "object or filesystem doesn't exist"),
        ("PUT", "/api/v1/config?id=x", Some(r#"{"colour":"red"}"#.into()), 500, "colour"),
        ("PUT", "/api/v1/config?id=x", Some(r#"{"registry_auth":"?"}"#.into()), 500, "user:password"),
        ("PUT", "/api/v1/config?id=x", Some(r#"{"registry_auth":7}"#.into()), 400, "ParseBody("),
        ("PUT", "/api/v1/config?id=x", Some(r#"{"proxy_url":"::"}"#.into()), 500, "proxy"),
        ("PUT", "/api/v1/config", Some(r#"{"proxy_url":""}"#.into()), 400, "'id' should be specified"),
        ("POST", "/api/v1/sockets", Some(r#"{"socket":"s","queues":0}"#.into()), 500, "queues"),
        ("POST", "/api/v1/sockets", Some(r#"{"socket":""}"#.into()), 500, "path of the socket is empty"),
        ("DELETE", "/api/v1/sockets?socket=none", None, 500, "doesn't exist"),
    ];
    let mut wrong = Vec::new();
    for (method, target, body, status, part) in rows {
        let answer = daemon.call(method, target, body.as_deref()).unwrap();
        let message = answer.message().unwrap();
        if answer.status != status || !message.contains(part) {
            wrong.push(format!("{method} {target}: {} {message}, not {status} {part}", answer.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let done = daemon.call("PUT", "/api/v2/daemon", Some(r#"{"log_level":"warn"}"#)).unwrap();
    assert_eq!(done.status, 204);
    let health = daemon.call("GET", "/healthz", None).unwrap();
    assert_eq!((health.status, health.body.as_str()), (200, "RUNNING\n"));
}

/// Facts of superblocks that the contract shows.
#[test]
fn superblocks_and_ids_in_queries() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    for (name, path, magic, version) in
        [("v6-zstd-blake3", "/six", 0xE0F5_E1E2_u64, 0x600), ("v5-zstd-blake3", "/five", 0x5241_4653, 0x500)]
    {
        let case = Case::named(name).unwrap();
        assert_eq!(daemon.mount("POST", path, &case).unwrap(), 204);
        let target = format!("/api/v1/daemon/backend?mountpoint={path}");
        let facts = daemon.call("GET", &target, None).unwrap().json().unwrap();
        assert_eq!((facts["magic"].as_u64(), facts["version"].as_u64()), (Some(magic), Some(version)));
        if version == 0x600 {
            // Bytes 40 to 43 of the superblock at 1024; nodes are 32 bytes each.
            let bytes = std::fs::read(&case.image.bootstrap).unwrap();
            let block = u32::from_le_bytes(bytes[1024 + 40..1024 + 44].try_into().unwrap());
            let root = u16::from_le_bytes(bytes[1024 + 14..1024 + 16].try_into().unwrap());
            assert_eq!(facts["meta_blkaddr"].as_u64(), Some(block.into()), "{facts}");
            assert_eq!(facts["root_nid"].as_u64(), Some(root.into()), "{facts}");
        }
    }
    // A path is the same however it is written.
    for id in ["/six", "%2Fsix", "/six/", "//six"] {
        let answer = daemon.call("GET", &format!("/api/v1/metrics?id={id}"), None).unwrap();
        assert_eq!((answer.status, &answer.json().unwrap()["id"]), (200, &json!("/six")), "{id}");
    }
    assert_eq!(daemon.call("GET", "/api/v1/metrics?id=six", None).unwrap().status, 404);
    assert_eq!(daemon.call("GET", "/api/v1/metrics", None).unwrap().status, 404, "there are two");
}

/// Reads are all timed, other calls too.
#[test]
fn every_kind_of_call_is_timed() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    assert_eq!(daemon.mount("POST", "/app", &Case::named("v6-zstd-blake3").unwrap()).unwrap(), 204);
    let mut guest = daemon.guest("fs.sock").unwrap();
    for _ in 0..200 {
        let file = guest.resolve(b"/app/sizes/f4097").unwrap().node;
        guest.read(file, 0, 0, 4096).unwrap();
        let dir = guest.resolve(b"/app/names").unwrap().node;
        guest.list(dir, 4096, true).unwrap();
    }
    let metrics = daemon.call("GET", "/api/v1/metrics?id=/app", None).unwrap().json().unwrap();
    // READ, LOOKUP, READDIRPLUS.
    for op in [4, 9, 11] {
        let (hits, micros) = (&metrics["fop_hits"][op], &metrics["fop_cumulative_latency_total"][op]);
        assert!(hits.as_u64() >= Some(200) && micros.as_u64() > Some(0), "{op}: {metrics}");
    }
    let page = daemon.call("GET", "/metrics", None).unwrap().body;
    let line =
        page.lines().find(|l| l.starts_with("rafsd_operation_seconds_total{mount=\"/app\",op=\"lookup\"}"));
    assert!(line.is_some_and(|line| !line.ends_with(" 0.000000")), "{line:?}");
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let case = Case::named("v6-zstd-blake3").unwrap();
    assert_eq!(daemon.mount("POST", "/app", &case).unwrap(), 204);
    let page = daemon.call("GET", "/metrics", None).unwrap().body;
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite) && !name.is_empty(), "{line}");
    }
    let path = guest_tests::support::binaries::workspace().join("configs/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut asked = 0;
    for target in
        dashboard["panels"].as_array().unwrap().iter().flat_map(|p| p["targets"].as_array().unwrap())
    {
        let expr = target["expr"].as_str().unwrap();
        for word in expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            if word.starts_with("rafsd_") || word.starts_with("process_") {
                let family = word.trim_end_matches("_bucket");
                assert!(page.contains(&format!("# TYPE {family} ")), "{word}");
                asked += 1;
            }
        }
    }
    assert!(asked > 10);
}

/// Whether a value is what a schema of docs/openapi.json says; `$ref`s are not used there.
fn fits(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if value.is_null() && schema["nullable"] == json!(true) {
        return Ok(());
    }
    let kind = schema["type"].as_str().ok_or_else(|| format!("{at}: a schema without type"))?;
    let right = match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        other => return Err(format!("{at}: type {other}")),
    };
    if !right {
        return Err(format!("{at}: {value} is no {kind}"));
    }
    if let Some(list) = schema["enum"].as_array()
        && !list.contains(value)
    {
        return Err(format!("{at}: {value} is none of {list:?}"));
    }
    for key in schema["required"].as_array().into_iter().flatten() {
        let key = key.as_str().unwrap_or_default();
        if value.get(key).is_none() {
            return Err(format!("{at}: {key} is missing"));
        }
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(key).or_else(|| schema.get("additionalProperties")) {
            Some(schema) if schema.is_object() => fits(schema, value, &format!("{at}.{key}"))?,
            _ if schema["additionalProperties"] == json!(true) => {}
            _ => return Err(format!("{at}: {key} is not in the schema")),
        }
    }
    for (n, value) in value.as_array().into_iter().flatten().enumerate() {
        fits(&schema["items"], value, &format!("{at}[{n}]"))?;
    }
    Ok(())
}

#[test]
fn the_openapi_document_says_what_is_answered() {
    let path = guest_tests::support::binaries::workspace().join("docs/openapi.json");
    let document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let daemon = ApiDaemon::start(&[]).unwrap();
    let case = Case::named("v6-zstd-blake3").unwrap();
    let body = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "/app");
    let body: Value = serde_json::from_str(&body).unwrap();
    let mut config: Value = serde_json::from_str(body["config"].as_str().unwrap()).unwrap();
    config["iostats_files"] = json!(true);
    config["latest_read_files"] = json!(true);
    let body = json!({"fs_type": "rafs", "source": body["source"], "config": config.to_string()}).to_string();
    assert_eq!(daemon.call("POST", "/api/v1/mount?mountpoint=/app", Some(&body)).unwrap().status, 204);
    let mut guest = daemon.guest("fs.sock").unwrap();
    let file = guest.resolve(b"/app/sizes/f4097").unwrap().node;
    guest.read(file, 0, 0, 4096).unwrap();
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            // An example of each request stands in the document.
            let Some(target) = operation["x-example"].as_str() else {
                panic!("{method} {path} has no x-example")
            };
            if path.ends_with("/exit") {
                continue;
            }
            let body = operation["requestBody"]["content"]["application/json"].get("example");
            let body = body.map(Value::to_string);
            let answer = daemon.call(&method.to_uppercase(), target, body.as_deref()).unwrap();
            let responses = &operation["responses"];
            let response = responses.get(answer.status.to_string());
            let response =
                response.unwrap_or_else(|| panic!("{method} {path}: {answer:?} is not in the document"));
            match response["content"]["application/json"].get("schema") {
                Some(schema) => fits(schema, &answer.json().unwrap(), path).unwrap(),
                None => {
                    assert!(answer.status == 204 || response["content"]["text/plain"].is_object(), "{path}")
                }
            }
            asked += 1;
        }
    }
    assert!(asked >= 20, "{asked}");
    // And no route is missing: what is not in the document is not there.
    for route in ["/api/v1/daemon", "/api/v1/mount", "/api/v1/sockets", "/metrics", "/healthz"] {
        assert!(document["paths"].get(route).is_some(), "{route}");
    }
}
