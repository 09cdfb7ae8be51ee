//! Archives made byte by byte, so that every byte can be wrong.

/// A header for a regular file, its data, and padding.
pub fn file(name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// An archive of `directories` times `files` small files.
pub fn archive(directories: usize, files: usize) -> Vec<u8> {
    let mut tar = Vec::new();
    for n in 0..directories * files {
        let size = if n % 3 == 0 { n % 4000 } else { 10 };
        let mut data = n.to_string().into_bytes();
        data.resize(size, b'x');
        let name = format!("dir-{:04}/sub-{}/some-file-name-{n:07}.txt", n / files, n % 7);
        tar.extend_from_slice(&file(&name, &data));
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}
