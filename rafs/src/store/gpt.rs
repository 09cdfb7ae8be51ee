//! GUID partition tables (UEFI specification 2.10, section 5.3), as far as blobs need them. A disk is hostile: sums are
//! checked, sizes bounded, and no partition reaches past the disk's end.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Sector sizes that disks have.
const SECTORS: [u64; 2] = [512, 4096];
/// Most bytes of partition entries that are read.
const ENTRIES_MAX: u64 = 1 << 20;
/// "Basic data" (EBD0A0A2-B9E5-4433-87C0-68B6B72699C7), as it lies on disk.
const BASIC_DATA: [u8; 16] =
    [0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7];

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    pub name: String,
    /// 32 lower-case hex digits, in the order in which a GUID is written.
    pub guid: String,
    pub basic_data: bool,
    /// Where it is on the disk.
    pub bytes: Range<u64>,
}

/// A valid table.
#[derive(Debug)]
pub(super) struct Gpt {
    pub partitions: Vec<Partition>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum GptError {
    #[error(
        "the disk has no valid GUID partition table, neither at its start nor at its end; `disable_gpt` reads it as one blob"
    )]
    None,
    #[error("the partition table cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

impl Gpt {
    /// Reads the table of a disk of `size` bytes, or its copy at the end.
    pub fn read(disk: &File, size: u64) -> Result<Self, GptError> {
        for sector in SECTORS {
            for header in [Some(sector), size.checked_sub(sector)].into_iter().flatten() {
                if let Some(partitions) = table(disk, size, sector, header)? {
                    return Ok(Self { partitions });
                }
            }
        }
        Err(GptError::None)
    }
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u32_at(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_le_bytes)
}

fn u64_at(from: &[u8], at: usize) -> Option<u64> {
    bytes(from, at).map(u64::from_le_bytes)
}

/// The table whose header is at byte `at`; `None` if that is no valid header.
fn table(disk: &File, size: u64, sector: u64, at: u64) -> Result<Option<Vec<Partition>>, std::io::Error> {
    let mut header = [0; 92];
    if at.checked_add(sector).is_none_or(|end| end > size) {
        return Ok(None);
    }
    disk.read_exact_at(&mut header, at)?;
    let fields = || {
        let sum = u32_at(&header, 16)?;
        let (entries, count) = (u64_at(&header, 72)?, u32_at(&header, 80)?);
        let (entry_size, entries_sum) = (u32_at(&header, 84)?, u32_at(&header, 88)?);
        let mut summed = header;
        summed.get_mut(16..20)?.fill(0);
        let good = header.starts_with(SIGNATURE)
            && u32_at(&header, 12)? == 92
            && libdeflater::crc32(&summed) == sum
            && u64_at(&header, 24)?.checked_mul(sector)? == at
            && (128..=4096).contains(&entry_size);
        let len = u64::from(count).checked_mul(entry_size.into()).filter(|&len| len <= ENTRIES_MAX)?;
        let start = entries.checked_mul(sector)?;
        let fits = start.checked_add(len)? <= size;
        (good && fits).then_some((start, len, entry_size, entries_sum))
    };
    let Some((start, len, entry_size, sum)) = fields() else { return Ok(None) };
    let (Ok(len), Ok(entry_size)) = (usize::try_from(len), usize::try_from(entry_size)) else {
        return Ok(None);
    };
    let mut entries = vec![0; len];
    disk.read_exact_at(&mut entries, start)?;
    if libdeflater::crc32(&entries) != sum {
        return Ok(None);
    }
    Ok(Some(entries.chunks_exact(entry_size).filter_map(|e| partition(e, sector, size)).collect()))
}

/// An entry, unless it is unused or makes no sense.
fn partition(entry: &[u8], sector: u64, size: u64) -> Option<Partition> {
    let kind: [u8; 16] = bytes(entry, 0)?;
    if kind == [0; 16] {
        return None;
    }
    let start = u64_at(entry, 32)?.checked_mul(sector)?;
    let end = u64_at(entry, 40)?.checked_add(1)?.checked_mul(sector)?;
    if start >= end || end > size {
        return None;
    }
    let units: Vec<u16> = entry
        .get(56..128)?
        .chunks_exact(2)
        .filter_map(|unit| bytes(unit, 0).map(u16::from_le_bytes))
        .take_while(|&unit| unit != 0)
        .collect();
    let name = String::from_utf16(&units).ok().filter(|name| !name.is_empty())?;
    // The first three fields of a GUID are little-endian.
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes::<16>(entry, 16)?;
    let guid = hex::encode([d, c, b, a, f, e, h, g]) + &hex::encode(rest);
    Some(Partition { name, guid, basic_data: kind == BASIC_DATA, bytes: start..end })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    /// A disk of 100 sectors with two blobs, and their ids: sectors 40 to 49, and 50 as old images have it.
    pub fn disk() -> (Vec<u8>, String, String) {
        let mut image: Vec<u8> = (0..100 * 512_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut entries = vec![0_u8; 4 * 128];
        let mut put = |n: usize, kind: [u8; 16], guid: [u8; 16], first: u64, last: u64, name: &str| {
            let entry = &mut entries[n * 128..(n + 1) * 128];
            entry[..16].copy_from_slice(&kind);
            entry[16..32].copy_from_slice(&guid);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            for (i, unit) in name.encode_utf16().enumerate() {
                entry[56 + 2 * i..58 + 2 * i].copy_from_slice(&unit.to_le_bytes());
            }
        };
        let name = "0123456789abcdef0123456789abcdef";
        let guid = [4, 3, 2, 1, 6, 5, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16];
        put(0, [1; 16], guid, 40, 49, name);
        put(1, BASIC_DATA, [7; 16], 50, 50, "feedfeedfeedfeedfeedfeedfeedfeed");
        put(2, [1; 16], [8; 16], 60, 1000, "reaches past the end");
        let write_header = |image: &mut Vec<u8>, lba: u64, entries_lba: u64| {
            let mut header = [0_u8; 92];
            header[..8].copy_from_slice(SIGNATURE);
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            header[24..32].copy_from_slice(&lba.to_le_bytes());
            header[72..80].copy_from_slice(&entries_lba.to_le_bytes());
            header[80..84].copy_from_slice(&4_u32.to_le_bytes());
            header[84..88].copy_from_slice(&128_u32.to_le_bytes());
            header[88..92].copy_from_slice(&libdeflater::crc32(&entries).to_le_bytes());
            let sum = libdeflater::crc32(&header);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
            let at = usize::try_from(lba).unwrap() * 512;
            image[at..at + 92].copy_from_slice(&header);
            let at = usize::try_from(entries_lba).unwrap() * 512;
            image[at..at + entries.len()].copy_from_slice(&entries);
        };
        write_header(&mut image, 1, 2);
        write_header(&mut image, 99, 98);
        let id = format!("{name}0102030405060708090a0b0c0d0e0f10");
        (image, id, format!("{}00112233445566778899aabbccddeeff", "feed".repeat(8)))
    }

    fn read(image: &[u8]) -> Result<Gpt, GptError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(image).unwrap();
        Gpt::read(&file, image.len() as u64)
    }

    #[test]
    fn tables_and_their_copies() {
        let (image, id, _) = disk();
        let table = read(&image).unwrap();
        assert_eq!(table.partitions.len(), 2, "one reaches past the end");
        assert_eq!(format!("{}{}", table.partitions[0].name, table.partitions[0].guid), id);
        assert_eq!(table.partitions[0].bytes, 40 * 512..50 * 512);
        let mut damaged = image.clone();
        damaged[512 + 30] ^= 1;
        assert_eq!(read(&damaged).unwrap().partitions, table.partitions, "from the copy");
        damaged[99 * 512] ^= 1;
        read(&damaged).unwrap_err();
        for cut in [0, 1, 511, 512, 600, 1023, 1024, 1500] {
            read(&image[..cut]).unwrap_err();
        }
    }

    #[test]
    fn any_changed_byte_of_header_or_entries_is_noticed() {
        let (image, ..) = disk();
        let image = &image[..99 * 512];
        read(image).unwrap();
        for at in (512..512 + 92).chain(1024..1024 + 512) {
            let mut damaged = image.to_vec();
            damaged[at] ^= 0x10;
            assert!(read(&damaged).is_err(), "{at}");
        }
    }
}
