//! `GET /daemon` and `GET /daemon/backend`: who the daemon is and what is mounted.

use super::clock;
use crate::daemon::{Daemon, FsKind, Mounted, SocketSpec};
use rafs::image::{FsVersion, Image};
use serde_json::{Map, Value, json};

/// Magic number of a v5 superblock.
const V5_MAGIC: u32 = 0x5241_4653;
/// Magic number of an EROFS superblock, which v6 is.
const V6_MAGIC: u32 = 0xE0F5_E1E2;

/// The daemon, with what is mounted unless the short form is asked for.
pub(super) fn daemon(daemon: &Daemon, short: bool) -> Value {
    let identity = daemon.identity();
    let version = &identity.version;
    let backends = if short {
        Value::Null
    } else {
        let entry = |mounted: &Mounted| (mounted.path.as_str().to_owned(), mount(mounted));
        Value::Object(daemon.mounted().iter().map(|mounted| entry(mounted)).collect::<Map<_, _>>())
    };
    json!({
        "version": {
            "package_ver": version.package_ver,
            "git_commit": version.git_commit,
            "build_time": version.build_time,
            "profile": version.profile,
            "rustc": version.rustc,
        },
        "id": identity.id,
        "supervisor": identity.supervisor,
        "state": daemon.state().to_string(),
        "backend_collection": backends,
    })
}

fn mount(mounted: &Mounted) -> Value {
    let kind = match mounted.kind {
        FsKind::Rafs => "Rafs",
        FsKind::Passthrough => "PassthroughFs",
    };
    json!({
        "backend_type": kind,
        "mountpoint": mounted.path.as_str(),
        "mounted_time": clock::shown(mounted.mounted_time),
        "source": mounted.source,
        "config": mounted.config.as_ref().map(crate::config::Config::shown),
    })
}

/// Bytes of the superblock, as v5 says in itself; v6 says nothing.
const V5_SB_SIZE: u32 = 8192;
/// Bytes that a node number of v6 counts.
const NID_UNIT: u64 = 32;

/// Block that v6's nodes are counted from: the last node ends with the bootstrap.
fn meta_blkaddr(image: &Image) -> u64 {
    let nodes = image.max_inode_number().saturating_add(1).saturating_mul(NID_UNIT);
    image.bootstrap_size().saturating_sub(nodes) / u64::from(image.block_size()).max(1)
}

/// What an image's superblock says.
pub(super) fn superblock(image: &Image) -> Value {
    let (magic, version) = match image.version() {
        FsVersion::V5 => (V5_MAGIC, 0x500),
        FsVersion::V6 => (V6_MAGIC, 0x600),
    };
    json!({
        "magic": magic,
        "version": version,
        "sb_size": if image.version() == FsVersion::V5 { V5_SB_SIZE } else { 0 },
        "root_inode": if image.version() == FsVersion::V5 { image.root().0 } else { 0 },
        "chunk_size": image.chunk_size(),
        "batch_size": 0,
        "inodes_count": image.inode_count(),
        "flags": {"bits": image.flags().bits()},
        "block_size": image.block_size(),
        "bootstrap_size": image.bootstrap_size(),
        "compressor": image.compressor().to_string(),
        "digester": image.digester().to_string(),
        "blobs": image.blobs().iter().map(|blob| blob.id.as_str()).collect::<Vec<_>>(),
        "meta_blkaddr": if image.version() == FsVersion::V6 { meta_blkaddr(image) } else { 0 },
        "root_nid": if image.version() == FsVersion::V6 { image.root().0 } else { 0 },
    })
}

/// One socket.
pub(super) fn socket(spec: &SocketSpec) -> Value {
    json!({
        "socket": spec.socket,
        "queues": spec.request_queues,
        "root": spec.view.root.as_str(),
        "mounts": spec.view.mounts.iter().map(crate::mounts::MountPath::as_str).collect::<Vec<_>>(),
    })
}
