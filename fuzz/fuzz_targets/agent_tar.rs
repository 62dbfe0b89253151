//! Archives that are put into containers: any bytes, whether or not they were a tar archive once.
#![no_main]

use std::io::{Cursor, Read};

use bulkhead_agent::files::tar::reader::Reader;
use bulkhead_agent::files::tar::{Entry, Kind, MAX_TEXT, padding, writer};
use libfuzzer_sys::fuzz_target;

/// All entries up to the first error, and their data.
fn read(archive: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut reader = Reader::new(Cursor::new(archive));
    let mut entries = Vec::new();
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(entry.path.len() <= MAX_TEXT && entry.link.len() <= MAX_TEXT);
        let mut data = Vec::new();
        let whole = reader.data().read_to_end(&mut data).is_ok();
        assert!(data.len() as u64 <= entry.size || entry.kind != Kind::File);
        if !whole {
            break;
        }
        entries.push((entry, data));
    }
    entries
}

fuzz_target!(|input: &[u8]| {
    // Whoever breaks a checksum learns nothing: every block is made a header.
    let mut archive = input.to_vec();
    for block in archive.chunks_exact_mut(512) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    read(input);
    let entries = read(&archive);
    // What was read can be written, and read again.
    let mut copy = Vec::new();
    for (entry, data) in &entries {
        writer::header(&mut copy, entry);
        copy.extend_from_slice(data);
        copy.resize(copy.len() + padding(data.len() as u64), 0);
    }
    writer::end(&mut copy);
    let again = read(&copy);
    let fits = entries
        .iter()
        .all(|(e, d)| e.size == d.len() as u64 && e.device.0.max(e.device.1) < 1 << 21);
    if fits {
        assert_eq!(again, entries);
    }
});
