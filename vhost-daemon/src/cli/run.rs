//! From a command line to a running daemon, and to its end.

use super::{Cli, Command, ConfigCommand, VirtiofsArgs, cache, check, ctl, fuse, serve};
use crate::daemon::Devices;
use anyhow::{Context, bail};
use clap::CommandFactory;
use std::sync::Arc;

/// Runs a command to its end. `ignored`: flags that were left out of it.
///
/// # Errors
///
/// One line that names what was attempted, on what, and what to do.
pub fn run(cli: Cli, ignored: &[String]) -> anyhow::Result<()> {
    match cli.command {
        Command::Virtiofs(args) => virtiofs(&args, ignored),
        Command::Fuse(args) => fuse::run(&args, ignored),
        Command::Config(ConfigCommand::Check { file }) => check::run(&file),
        Command::Cache(command) => cache::run(&command),
        Command::Ctl(args) => ctl::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "rafsd", &mut std::io::stdout());
            Ok(())
        }
        Command::Man { dir } => {
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            clap_mangen::generate_to(Cli::command(), &dir)
                .with_context(|| format!("cannot write man pages to {}", dir.display()))
        }
        Command::Singleton(_) => {
            bail!("singleton: EROFS over fscache is not supported; use `rafsd virtiofs`")
        }
        Command::Nbd(_) => bail!("nbd: the network block device is not supported; use `rafsd virtiofs`"),
        Command::Uffd(_) => bail!("uffd: the page-fault service is not supported; use `rafsd virtiofs`"),
    }
}

fn virtiofs(args: &VirtiofsArgs, ignored: &[String]) -> anyhow::Result<()> {
    let common = &args.common;
    let mount = serve::first_mount(common)?;
    if mount.is_none() && common.image.is_none() && common.apisock.is_none() {
        bail!(
            "nothing to serve: say --bootstrap FILE, --image REF or --shared-dir DIR, or --apisock PATH to mount later"
        );
    }
    if common.upgrade {
        bail!("--upgrade: virtio-fs sockets cannot be taken over; start without it");
    }
    let mut start = serve::begin(common, ignored)?;
    let mount = match mount {
        None => serve::image_mount(common, &start)?,
        given => given,
    };
    if let Some(mount) = &mount {
        start.daemon.mount(mount)?;
    }
    let devices = Arc::new(Devices::default());
    let queues = args.queues.unwrap_or_else(serve::default_queues);
    let started = args.sock.iter().try_for_each(|socket| devices.add(&start.daemon, socket.spec(queues)));
    start.daemon.set_transport(Arc::clone(&devices) as _);
    let served = started.map_err(anyhow::Error::from).and_then(|()| {
        if let Some(mount) = &mount {
            tracing::info!("mounted {} {} at {}", mount.kind.name(), mount.source.display(), mount.path);
        }
        start.daemon.running();
        let mut api = serve::api(common, &start, Some(Arc::clone(&devices)), queues)?;
        let ended = serve::wait(&mut start, common);
        if let Some(api) = &mut api {
            api.stop();
        }
        ended
    });
    devices.end();
    start.daemon.shutdown();
    served
}
