//! Large files on their way to nodes: pieces of 1 MiB, under the SHA-256 of the whole.
//!
//! **Owns** the sizes. **Does not own** where the pieces lie, or any I/O.

/// Bytes of a piece; the last one of a file may have fewer.
pub const PIECE_BYTES: usize = 1 << 20;

/// Most pieces of a file.
pub const MAX_PIECES: u32 = 1 << 16;

/// Most bytes of a file.
pub const MAX_BYTES: u64 = PIECE_BYTES as u64 * MAX_PIECES as u64;
