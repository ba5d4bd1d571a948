//! Mutations of valid encodings: what a broken disk, a broken peer, or somebody with a hex editor would make of them.

use baton::base::Prng;

/// Numbers at which decoders break: ends of ranges, signs, limits of this system.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    7,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x0100_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];
/// The same for protocols made of text.
const WORDS: [&[u8]; 18] = [
    b"0",
    b"-1",
    b"1",
    b"512",
    b"1048576",
    b"2147483647",
    b"2147483648",
    b"9223372036854775807",
    b"-9223372036854775809",
    b"99999999999999999999",
    b"\r\n",
    b"$",
    b"*",
    b"\"",
    b"\\x",
    b"inf",
    b"\0",
    b"[[member]]\n",
];

/// Longest input: large enough for a log segment, small enough for many tries.
pub const INPUT_BYTES_MAX: usize = 96 << 10;

/// Changes `data` a few times.
pub fn mutate(data: &mut Vec<u8>, other: &[u8], dice: &mut Prng) {
    for _ in 0..dice.between(1, 5) {
        once(data, other, dice);
    }
    data.truncate(INPUT_BYTES_MAX);
}

fn once(data: &mut Vec<u8>, other: &[u8], dice: &mut Prng) {
    if data.is_empty() {
        data.extend_from_slice(&other[..other.len().min(64)]);
        data.push(dice.next_u64() as u8);
    }
    let at = place(data.len(), dice);
    let longest = if dice.chance(0.9) { 16 } else { 4096 };
    let len = (dice.below(longest) as usize + 1).min(data.len() - at);
    match dice.below(11) {
        0 => data[at] ^= 1 << dice.below(8),
        1 => data[at] = dice.next_u64() as u8,
        2 | 3 => {
            // A field, little-endian as all of ours are.
            let width = [1, 2, 4, 8][dice.below(4) as usize].min(data.len() - at);
            let mut value = EDGES[dice.below(EDGES.len() as u64) as usize];
            if dice.chance(0.3) {
                value = value.wrapping_add(dice.below(5)).wrapping_sub(2);
            }
            data[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        4 => drop(data.drain(at..at + len)),
        5 => {
            let copy = data[at..at + len].to_vec();
            insert(data, at, &copy);
        }
        6 => data.truncate(at),
        7 => data[at..at + len].fill(if dice.chance(0.5) { 0 } else { 0xff }),
        8 => {
            let word = WORDS[dice.below(WORDS.len() as u64) as usize];
            let replaced = (dice.below(4) as usize).min(data.len() - at);
            data.drain(at..at + replaced);
            insert(data, at, word);
        }
        9 if !other.is_empty() => {
            let from = place(other.len(), dice);
            let piece = &other[from..(from + len).min(other.len())];
            insert(data, at, piece);
        }
        // Two inputs in one: the beginning of one and the end of the other, at the same place.
        _ => {
            data.truncate(at);
            data.extend_from_slice(other.get(at..).unwrap_or(&[]));
        }
    }
}

/// Anywhere, but more often near the beginning, where the heads are.
fn place(len: usize, dice: &mut Prng) -> usize {
    let reach = if dice.chance(0.5) { len.min(160) } else { len };
    dice.below(reach as u64) as usize
}

fn insert(data: &mut Vec<u8>, at: usize, piece: &[u8]) {
    if data.len() + piece.len() <= INPUT_BYTES_MAX {
        data.splice(at..at, piece.iter().copied());
    }
}
