//! What is fetched before anybody reads it, and what is written down of reading.
//!
//! Owns: the traces of a daemon, and how settings become a prefetch. Does not own: fetching (`rafs::reader`).

use crate::config::{Config, PrefetchSettings};
use anyhow::Context;
use rafs::reader::Prefetch;
use rafs::trace::{Trace, TraceRecorder};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Traces that all mounts of a daemon take part in.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    /// Where first touches are written.
    pub record: Option<Arc<TraceRecorder>>,
    /// What is fetched first.
    pub replay: Option<Arc<Trace>>,
}

impl Traces {
    /// Opens the files of `--record-trace` and `--prefetch-trace`.
    ///
    /// # Errors
    ///
    /// One cannot be written, or is no trace.
    pub fn open(record: Option<&Path>, replay: Option<&Path>) -> anyhow::Result<Self> {
        let replay = replay.map(|path| Trace::load(path).context("--prefetch-trace")).transpose()?;
        let create = |path: &Path| {
            TraceRecorder::create(path)
                .with_context(|| format!("--record-trace: cannot write {}", path.display()))
        };
        Ok(Self { record: record.map(create).transpose()?, replay: replay.map(Arc::new) })
    }
}

/// What to prefetch for a mount; `None`: nothing.
pub(super) fn of_mount(config: &Config, files: &[PathBuf], traces: &Traces) -> Option<Prefetch> {
    let configured = [&config.rafs.prefetch, &config.cache_prefetch];
    let settings = configured.into_iter().find(|settings| settings.enable);
    if settings.is_none() && files.is_empty() && traces.replay.is_none() {
        return None;
    }
    let shape = settings.unwrap_or(&config.rafs.prefetch);
    let whole = |settings: &PrefetchSettings| settings.prefetch_all || settings.stream_prefetch;
    let default = Prefetch::default();
    let number = |n: u64, or: u32| u32::try_from(n).ok().filter(|&n| n > 0).unwrap_or(or);
    Some(Prefetch {
        trace: traces.replay.clone(),
        image_list: settings.is_some(),
        files: files.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect(),
        all: configured.into_iter().any(|settings| settings.enable && whole(settings)),
        threads: number(shape.threads, default.threads),
        batch_size: number(shape.batch_size, default.batch_size),
        bandwidth: shape.bandwidth_limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_a_prefetch() {
        let mut config = Config::localfs(Path::new("/b"));
        let none = Traces::default();
        assert!(of_mount(&config, &[], &none).is_none());
        let files = of_mount(&config, &["/a".into()], &none).unwrap();
        assert_eq!(
            (files.files.as_slice(), files.image_list, files.all),
            (&[b"/a".to_vec()][..], false, false)
        );
        config.cache_prefetch.enable = true;
        config.cache_prefetch.prefetch_all = true;
        config.cache_prefetch.threads = 3;
        config.cache_prefetch.bandwidth_limit = 7;
        let all = of_mount(&config, &[], &none).unwrap();
        assert!(all.all && all.image_list);
        assert_eq!((all.threads, all.batch_size, all.bandwidth), (3, 1 << 20, 7));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let error = Traces::open(None, Some(&path)).unwrap_err();
        assert!(format!("{error:#}").contains("--prefetch-trace"));
        drop(Traces::open(Some(&path), None).unwrap());
        let traces = Traces::open(None, Some(&path)).unwrap();
        config.cache_prefetch.enable = false;
        let replay = of_mount(&config, &[], &traces).unwrap();
        assert!(replay.trace.is_some() && !replay.image_list && !replay.all);
    }
}
