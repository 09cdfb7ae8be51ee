//! What every request is answered on a RAFS image, kind by kind: the file-system contract as a table.
//!
//! Each row is a request and the errno it must bring (0: success). The same table holds for RAFS v5 and v6.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

mod common;

use common::{Row, both, check, connect, errno, nodes};
use guest_tests::frontend::client::ROOT;
use guest_tests::frontend::fuse::{
    ATTR_OUT, Body, ENTRY_OUT, getattr_in, getxattr_in, in_header, listxattr_in, op, open_in, read_in,
    release_in,
};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EACCES: i32 = 13;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
const ERANGE: i32 = 34;
const ENAMETOOLONG: i32 = 36;
const ENOSYS: i32 = 38;
const ENODATA: i32 = 61;

#[test]
fn requests_that_are_not_supported() {
    both(|f| {
        let mut client = connect(f);
        let n = nodes(&mut client);
        let mut rows = Vec::new();
        let zeros = vec![0; 128];
        for opcode in [
            op::IOCTL,
            op::BMAP,
            op::POLL,
            op::GETLK,
            op::SETLK,
            op::SETLKW,
            op::COPY_FILE_RANGE,
            op::SYNCFS,
            op::STATX,
            7,
            19,
            41,
            53,
            60,
            200,
            4096,
            1 << 20,
            u32::MAX,
        ] {
            rows.push((format!("opcode {opcode}"), opcode, n["reg"], zeros.clone(), 4096, &[ENOSYS][..]));
        }
        let name = Body::new().u32(0o644).u32(0).u32(0).u32(0).name(b"x").done();
        rows.push(("TMPFILE".to_owned(), op::TMPFILE, ROOT, name, 4096, &[ENOSYS]));
        check(&mut client, rows);
        client.unmount().unwrap();
    });
}

#[test]
fn requests_that_would_write() {
    both(|f| {
        let mut client = connect(f);
        let n = nodes(&mut client);
        let zeros = |len: usize| vec![0; len];
        let name = |head: usize| Body::new().raw(&vec![0; head]).name(b"new").done();
        let two = |head: usize| Body::new().raw(&vec![0; head]).name(b"a").name(b"b").done();
        let (reg, dir) = (n["reg"], n["dir"]);
        let write = Body::new().raw(&read_in(0, 0, 4)).raw(b"data").done();
        let mut rows: Vec<Row> = [
            ("SETATTR", op::SETATTR, reg, zeros(88)),
            ("MKNOD", op::MKNOD, dir, name(16)),
            ("MKDIR", op::MKDIR, dir, name(8)),
            ("UNLINK", op::UNLINK, dir, b"A\0".to_vec()),
            ("RMDIR", op::RMDIR, ROOT, b"emptydir\0".to_vec()),
            ("SYMLINK", op::SYMLINK, dir, two(0)),
            ("RENAME", op::RENAME, dir, Body::new().u64(dir).name(b"A").name(b"B").done()),
            ("RENAME2", op::RENAME2, dir, Body::new().u64(dir).u64(0).name(b"A").name(b"B").done()),
            ("LINK", op::LINK, dir, Body::new().u64(reg).name(b"hard").done()),
            ("CREATE", op::CREATE, dir, name(16)),
            ("WRITE", op::WRITE, reg, write),
            ("FALLOCATE", op::FALLOCATE, reg, zeros(32)),
            ("SETXATTR", op::SETXATTR, reg, Body::new().u32(1).u32(0).name(b"user.x").raw(b"1").done()),
            ("REMOVEXATTR", op::REMOVEXATTR, n["xattrs"], b"user.a\0".to_vec()),
        ]
        .into_iter()
        .map(|(what, opcode, node, body)| (what.to_owned(), opcode, node, body, 4096, &[EROFS][..]))
        .collect();
        for (what, flags) in
            [("O_WRONLY", 1), ("O_RDWR", 2), ("O_TRUNC", 0o1000), ("O_RDWR|O_APPEND", 2 | 0o2000)]
        {
            rows.push((format!("OPEN {what}"), op::OPEN, reg, open_in(flags), 16, &[EROFS]));
        }
        check(&mut client, rows);
        client.unmount().unwrap();
    });
}

#[test]
fn requests_to_the_wrong_kind_of_file() {
    both(|f| {
        let mut client = connect(f);
        let n = nodes(&mut client);
        let mut rows: Vec<Row> = Vec::new();
        for (kind, node) in &n {
            let (dir, file) = (matches!(*kind, "dir" | "root"), matches!(*kind, "reg" | "empty" | "xattrs"));
            let read: &[i32] = match (dir, file) {
                (true, _) => &[EISDIR],
                (_, true) => &[0],
                _ => &[EINVAL],
            };
            rows.push((format!("READ of {kind}"), op::READ, *node, read_in(0, 0, 4096), 4096, read));
            let link: &[i32] = if *kind == "symlink" { &[0] } else { &[EINVAL] };
            rows.push((format!("READLINK of {kind}"), op::READLINK, *node, Vec::new(), 4096, link));
            let list: &[i32] = if dir { &[0] } else { &[ENOTDIR] };
            rows.push((format!("READDIR of {kind}"), op::READDIR, *node, read_in(0, 0, 4096), 4096, list));
            rows.push((
                format!("READDIRPLUS of {kind}"),
                op::READDIRPLUS,
                *node,
                read_in(0, 0, 4096),
                4096,
                list,
            ));
            // A daemon that keeps no handles says ENOSYS to a legal one.
            let opendir: &[i32] = if dir { &[0, ENOSYS] } else { &[ENOTDIR] };
            rows.push((format!("OPENDIR of {kind}"), op::OPENDIR, *node, open_in(0), 16, opendir));
            if dir {
                rows.push((format!("OPEN of {kind}"), op::OPEN, *node, open_in(0), 16, &[EISDIR]));
            } else {
                let lookup: &[i32] = &[ENOTDIR];
                rows.push((
                    format!("LOOKUP in {kind}"),
                    op::LOOKUP,
                    *node,
                    b"x\0".to_vec(),
                    ENTRY_OUT,
                    lookup,
                ));
            }
            for (what, opcode, body) in [
                ("FLUSH", op::FLUSH, vec![0; 24]),
                ("FSYNC", op::FSYNC, vec![0; 16]),
                ("FSYNCDIR", op::FSYNCDIR, vec![0; 16]),
                ("RELEASE", op::RELEASE, release_in(0)),
                ("RELEASEDIR", op::RELEASEDIR, release_in(0)),
            ] {
                rows.push((format!("{what} of {kind}"), opcode, *node, body, 16, &[0]));
            }
        }
        check(&mut client, rows);
        client.unmount().unwrap();
    });
}

#[test]
fn malformed_requests() {
    both(|f| {
        let mut client = connect(f);
        let n = nodes(&mut client);
        let mut rows: Vec<Row> = Vec::new();
        // Each opcode with a body, cut one byte short and cut off entirely.
        for (opcode, body) in [
            (op::GETATTR, getattr_in()),
            (op::OPEN, open_in(0)),
            (op::OPENDIR, open_in(0)),
            (op::READ, read_in(0, 0, 4096)),
            (op::READDIR, read_in(0, 0, 4096)),
            (op::READDIRPLUS, read_in(0, 0, 4096)),
            (op::RELEASE, release_in(0)),
            (op::RELEASEDIR, release_in(0)),
            (op::GETXATTR, vec![0; 8]),
            (op::LISTXATTR, listxattr_in(0)),
            (op::LSEEK, vec![0; 24]),
            (op::ACCESS, vec![0; 8]),
            (op::FLUSH, vec![0; 24]),
            (op::FSYNC, vec![0; 16]),
        ] {
            let node = if matches!(opcode, op::OPENDIR | op::READDIR | op::READDIRPLUS | op::RELEASEDIR) {
                n["dir"]
            } else {
                n["reg"]
            };
            for keep in [body.len() - 1, 0] {
                let cut = body[..keep].to_vec();
                rows.push((format!("opcode {opcode} with {keep} bytes"), opcode, node, cut, 4096, &[EINVAL]));
            }
        }
        for (what, body, want) in [
            ("name without NUL", b"f1".to_vec(), EINVAL),
            ("no name", Vec::new(), EINVAL),
            ("256 bytes", Body::new().name(&[b'n'; 256]).done(), ENAMETOOLONG),
            ("3000 bytes", Body::new().name(&[b'n'; 3000]).done(), ENAMETOOLONG),
        ] {
            let want: &[i32] = if want == EINVAL { &[EINVAL] } else { &[ENAMETOOLONG] };
            rows.push((format!("LOOKUP, {what}"), op::LOOKUP, n["dir"], body, ENTRY_OUT, want));
        }
        let unnamed = Body::new().u32(64).u32(0).raw(b"user.a").done();
        rows.push(("GETXATTR without NUL".to_owned(), op::GETXATTR, n["xattrs"], unnamed, 64, &[EINVAL]));
        check(&mut client, rows);

        // The header lies about the length.
        for lie in [0_u32, 39, 40, 55, 57, 1 << 20, u32::MAX] {
            let unique = client.session.next_unique();
            let mut message = in_header(lie, op::GETATTR, unique, n["reg"]).to_vec();
            message.extend_from_slice(&getattr_in());
            let sent = client.session.submit_bytes(1, op::GETATTR, &message, Some(ATTR_OUT)).unwrap();
            client.session.flush().unwrap();
            let done = client.session.wait_for(sent).unwrap();
            assert_eq!(done.errno, EINVAL, "header says {lie} of 56 bytes");
            client.session.release(done);
        }
        client.unmount().unwrap();
    });
}

#[test]
fn replies_that_do_not_fit() {
    both(|f| {
        let mut client = connect(f);
        let n = nodes(&mut client);
        let rows: Vec<Row> = [
            ("GETATTR", op::GETATTR, n["reg"], getattr_in(), ATTR_OUT - 1, EINVAL),
            ("LOOKUP", op::LOOKUP, n["dir"], b"A\0".to_vec(), ENTRY_OUT - 1, EINVAL),
            ("READLINK", op::READLINK, n["symlink"], Vec::new(), 10, EINVAL),
            ("STATFS", op::STATFS, ROOT, Vec::new(), 79, EINVAL),
            ("GETXATTR", op::GETXATTR, n["xattrs"], getxattr_in(4096, b"user.longer.name"), 0, ERANGE),
            ("LISTXATTR", op::LISTXATTR, n["xattrs"], listxattr_in(4096), 5, ERANGE),
            ("READDIR, first entry", op::READDIR, n["dir"], read_in(0, 0, 8), 4096, EINVAL),
            ("READDIRPLUS, first entry", op::READDIRPLUS, n["dir"], read_in(0, 0, 100), 4096, EINVAL),
        ]
        .into_iter()
        .map(|(what, opcode, node, body, room, want)| {
            let want: &[i32] = if want == ERANGE { &[ERANGE] } else { &[EINVAL] };
            (what.to_owned(), opcode, node, body, room, want)
        })
        .collect();
        check(&mut client, rows);
        client.unmount().unwrap();
    });
}

#[test]
fn node_ids_that_do_not_exist() {
    both(|f| {
        let mut client = connect(f);
        let n = nodes(&mut client);
        let real: Vec<u64> = n.values().copied().collect();
        let mut bogus = vec![0, 2, 1 << 56, u64::MAX, u64::MAX >> 1, 0xff << 56, n["reg"] ^ (0x80 << 56)];
        bogus.extend((0..64).map(|bit| 1_u64 << bit));
        bogus.extend((0..64).map(|bit| n["reg"] ^ (1_u64 << bit)));
        bogus.retain(|node| !real.contains(node));
        for node in bogus {
            for (opcode, body, room) in [
                (op::GETATTR, getattr_in(), 4096),
                (op::LOOKUP, b"x\0".to_vec(), 4096),
                (op::READLINK, Vec::new(), 4096),
                (op::READ, read_in(0, 0, 4096), 4096),
                (op::READDIR, read_in(0, 0, 4096), 4096),
                (op::READDIRPLUS, read_in(0, 0, 4096), 4096),
                (op::GETXATTR, getxattr_in(4096, b"user.x"), 4096),
                (op::LISTXATTR, listxattr_in(4096), 4096),
            ] {
                // The id may be another file's by chance; any answer that is one will do, and none may be missing.
                let got = errno(client.call(opcode, node, &body, room));
                let known = [0, ENOENT, EIO, EINVAL, ENOTDIR, EISDIR, ENODATA, ERANGE, EPERM, EACCES];
                assert!(known.contains(&got), "opcode {opcode} of node {node:#x}: errno {got}");
            }
        }
        for node in [0xff << 56 | 1, 0x7f << 56 | 128] {
            assert_eq!(errno(client.call(op::GETATTR, node, &getattr_in(), ATTR_OUT)), ENOENT, "{node:#x}");
        }
        client.unmount().unwrap();
    });
}
