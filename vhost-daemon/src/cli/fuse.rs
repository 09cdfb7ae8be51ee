//! `rafsd fuse`: a mount on this host, new or taken over from another daemon.
//!
//! Owns: which of the two it is, and how it ends. Does not own: the mount ([`crate::fusedev`]).

use super::{FailoverPolicy, FuseArgs, serve};
use crate::daemon::State;
use crate::fusedev::{self, FuseMount, FuseOptions, is_mounted};
use anyhow::{Context, bail};
use signal_hook::consts::SIGTERM;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

/// Longest path of a unix socket, bytes (`sun_path` without its NUL).
const SOCKET_PATH_MAX: usize = 107;

pub(super) fn run(args: &FuseArgs, ignored: &[String]) -> anyhow::Result<()> {
    let common = &args.common;
    // Before anything is mounted.
    for (flag, path) in [("--apisock", &common.apisock), ("--supervisor", &common.supervisor)] {
        if let Some(path) = path.as_deref().filter(|path| path.as_os_str().len() > SOCKET_PATH_MAX) {
            bail!("{flag} {}: paths of sockets have at most {SOCKET_PATH_MAX} bytes", path.display());
        }
    }
    let successor = common.upgrade || has_died(args);
    if successor && (common.supervisor.is_none() || common.apisock.is_none()) {
        bail!(
            "to take over from another daemon say --supervisor, --id and --apisock; to mount anew unmount {} first",
            args.mountpoint.display()
        );
    }
    let mount = if successor { None } else { serve::first_mount(common)? };
    if mount.is_none() && common.image.is_none() && common.apisock.is_none() {
        bail!(
            "nothing to mount: say --bootstrap FILE, --image REF or --shared-dir DIR, or --apisock PATH to mount later"
        );
    }
    let mut start = serve::begin(common, ignored)?;
    let mount = match mount {
        None if !successor => serve::image_mount(common, &start)?,
        given => given,
    };
    if let Some(mount) = &mount {
        start.daemon.mount(mount)?;
    }
    let options = FuseOptions {
        mountpoint: args.mountpoint.clone(),
        threads: args.fuse_threads.into(),
        writable: args.writable,
        failover: match args.failover_policy {
            FailoverPolicy::None => fusedev::FailoverPolicy::None,
            FailoverPolicy::Resend => fusedev::FailoverPolicy::Resend,
            FailoverPolicy::Flush => fusedev::FailoverPolicy::Flush,
        },
        supervisor: common.supervisor.clone(),
        upgrade: common.upgrade,
    };
    // Somebody unmounted it: there is nothing left to do.
    let ended = || {
        tracing::info!("the mount is gone");
        let _ = signal_hook::low_level::raise(SIGTERM);
    };
    let fuse = FuseMount::new(&start.daemon, options, ended)?;
    start.daemon.set_transport(Arc::clone(&fuse) as _);
    if successor {
        tracing::info!("not mounting {}: waiting to take over", fuse.mountpoint().display());
    } else {
        fuse.mount()?;
        start.daemon.running();
    }
    let queues = serve::default_queues();
    let served =
        serve::api(common, &start, None, queues).context("cannot start the API").and_then(|mut api| {
            let ended = serve::wait(&mut start, common);
            if let Some(api) = &mut api {
                api.stop();
            }
            ended
        });
    // After `PUT /daemon/exit` the mount belongs to a successor.
    if start.daemon.state() != State::Stopped {
        fuse.unmount();
    }
    start.daemon.shutdown();
    served
}

/// Whether a daemon with the same mountpoint and API socket died and left both.
fn has_died(args: &FuseArgs) -> bool {
    let refuses = |path: &Path| {
        path.exists()
            && UnixStream::connect(path).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    args.common.apisock.as_deref().is_some_and(refuses) && is_mounted(&args.mountpoint)
}
