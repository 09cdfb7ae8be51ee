//! What errors of the daemon look like in answers: clients parse these texts (nydusd-cli-api.md section 3).

use super::answer::Answer;
use crate::config::ConfigError;
use crate::daemon::DaemonError;
use crate::mounts::OpenError;
use crate::wording::one_line;
use rafs::image::ImageError;
use rafs_net::NetError;

impl Answer {
    /// What the daemon could not do: `outer(inner(kind))`, which people grep.
    #[must_use]
    pub fn failed(outer: &str, inner: &str, error: &DaemonError) -> Self {
        let status = match error {
            DaemonError::UnexpectedEvent(_) => 400,
            DaemonError::Unsupported => 501,
            DaemonError::NotReady => 503,
            _ => 500,
        };
        Self::error(status, &format!("{outer}({inner}({}))", kind(error)))
    }
}

/// The innermost part of an error's text.
fn kind(error: &DaemonError) -> String {
    match error {
        DaemonError::UnexpectedEvent(event) => format!("UnexpectedEvent({event:?})"),
        DaemonError::Unsupported => "Unsupported".to_owned(),
        DaemonError::NotReady => "NotReady".to_owned(),
        DaemonError::Upgrade(text) => format!("UpgradeManager({text:?})"),
        other => format!("Other(\"{}\")", other_text(other)),
    }
}

/// The reference's words first, up to its stray backquote; then ours.
fn other_text(error: &DaemonError) -> String {
    let rafs = |text: &str, more: &str| {
        let space = if more.is_empty() { "" } else { " " };
        format!("RAFS failed to handle request, {text}`{space}{more}")
    };
    match error {
        DaemonError::Open(OpenError::Image(ImageError::Io { source, .. })) => {
            rafs(&format!("Failed to fill superBlock: {source}"), &error.to_string())
        }
        DaemonError::Open(OpenError::Image(image)) => {
            rafs("Failed to fill superBlock: Invalid argument (os error 22)", &image.to_string())
        }
        DaemonError::Open(OpenError::Check(check)) => {
            rafs("Failed to fill superBlock: Invalid argument (os error 22)", &one_line(check))
        }
        DaemonError::Open(OpenError::Store(store)) => {
            let errno = match store.downcast_ref::<NetError>() {
                None | Some(NetError::Local(_)) => "Input/output error (os error 5)",
                Some(_) => "Invalid argument (os error 22)",
            };
            rafs(&format!("Failed to create device: {errno}"), &one_line(store))
        }
        DaemonError::Config(ConfigError::Parse { tried }) => {
            rafs("Failed to load config: failed to parse configuration information", tried)
        }
        DaemonError::Config(ConfigError::NoRafs) => {
            rafs("Failed to load config: no configuration information for rafs", "")
        }
        DaemonError::Config(config) => {
            rafs("Failed to load config: invalid configuration", &config.to_string())
        }
        DaemonError::Path(path) => {
            format!("VFS failed to handle request, PathWalk(Invalid argument (os error 22))` {path}")
        }
        DaemonError::Prefetch(_) => format!("invalid prefetch file list: {error}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn message(answer: &Answer) -> String {
        let body: Value = serde_json::from_str(answer.body.as_deref().unwrap()).unwrap();
        assert_eq!(body["code"], "UNDEFINED");
        body["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn texts_of_the_contract() {
        let mount = |error: DaemonError| message(&Answer::failed("Mount", "MountFilesystem", &error));
        assert_eq!(
            mount(DaemonError::Exists),
            r#"Mount(MountFilesystem(Other("object or filesystem already exists")))"#
        );
        assert_eq!(
            mount(DaemonError::FsType("foo".into())),
            r#"Mount(MountFilesystem(Other("invalid argument `only 'rafs' and 'passthrough_fs' are supported, but foo was specified`")))"#
        );
        assert!(mount(DaemonError::Config(ConfigError::NoRafs)).contains(
            "RAFS failed to handle request, Failed to load config: no configuration information for rafs`"
        ));
        let start = Answer::failed("Configure", "DaemonAbnormal", &DaemonError::UnexpectedEvent("Start"));
        assert_eq!(start.status, 400);
        assert_eq!(message(&start), r#"Configure(DaemonAbnormal(UnexpectedEvent("Start")))"#);
        let blobs = Answer::failed("CreateBlobObject", "DaemonAbnormal", &DaemonError::Unsupported);
        assert_eq!(
            (blobs.status, message(&blobs).as_str()),
            (501, "CreateBlobObject(DaemonAbnormal(Unsupported))")
        );
    }
}
