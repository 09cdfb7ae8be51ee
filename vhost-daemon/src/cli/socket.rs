//! The value of `--sock`: a socket and what its guests see.

use crate::daemon::{SocketSpec, ViewSpec};
use crate::mounts::MountPath;
use crate::wording::is_like;
use std::path::PathBuf;
use std::str::FromStr;

/// `PATH[,root=PATH][,mounts=PATH:PATH][,queues=N]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketArg {
    /// The socket.
    pub path: PathBuf,
    /// Request queues, if it says.
    pub queues: Option<u16>,
    /// What its guests see.
    pub view: ViewSpec,
}

impl FromStr for SocketArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut path, mut queues, mut view) = (text, None, ViewSpec::default());
        // From the end, and only what is meant: a path may have commas of its own.
        while let Some((before, option)) = path.rsplit_once(',') {
            match option.split_once('=') {
                Some(("root", root)) => view.root = MountPath::parse(root).map_err(|e| e.to_string())?,
                Some(("mounts", list)) => {
                    let paths = list.split(':').map(MountPath::parse).collect::<Result<_, _>>();
                    view.mounts = paths.map_err(|e| e.to_string())?;
                }
                Some(("queues", n)) => {
                    let n = n.parse().ok().filter(|n| (1..=64).contains(n));
                    queues = Some(n.ok_or("queues is a number from 1 to 64")?);
                }
                Some((key, _)) if ["root", "mounts", "queues"].iter().any(|known| is_like(known, key)) => {
                    return Err(format!("there is no option {key}=; use root=, mounts= or queues="));
                }
                _ => break,
            }
            path = before;
        }
        if path.is_empty() {
            return Err("the path of the socket is empty".to_owned());
        }
        Ok(Self { path: PathBuf::from(path), queues, view })
    }
}

impl SocketArg {
    /// The socket with `default` queues if it does not say.
    #[must_use]
    pub fn spec(&self, default: u16) -> SocketSpec {
        SocketSpec {
            socket: self.path.clone(),
            request_queues: self.queues.unwrap_or(default),
            view: self.view.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_their_views() {
        let plain: SocketArg = "/run/a,b.sock".parse().unwrap();
        assert_eq!((plain.path.to_str(), plain.view), (Some("/run/a,b.sock"), ViewSpec::default()));
        let full: SocketArg = "s.sock,root=/t1,mounts=/t1/a:/t1/b,queues=3".parse().unwrap();
        assert_eq!((full.path.to_str(), full.queues), (Some("s.sock"), Some(3)));
        assert_eq!(full.view.root.as_str(), "/t1");
        assert_eq!(full.view.mounts.len(), 2);
        for bad in [
            "",
            ",root=/a",
            "s,root=a",
            "s,queues=0",
            "s,queues=65",
            "s,roots=/a",
            "s,quues=2",
            "s,mounts=/a:b",
        ] {
            assert!(bad.parse::<SocketArg>().is_err(), "{bad}");
        }
    }
}
