//! The frames of live output: one byte for the kind, three zero bytes, the length (4 bytes, big-endian), the payload.
//!
//! **Owns** the bytes of a frame's header, its kinds and its bounds.
//! **Does not own** what a payload means, where a stream begins, or any I/O.

use std::fmt;

/// Bytes of a frame in front of its payload.
pub const HEADER_BYTES: usize = 8;

/// Most bytes of a frame, its header included.
pub const MAX_FRAME_BYTES: usize = 256 << 10;

/// Most bytes of a frame's payload.
pub const MAX_PAYLOAD_BYTES: usize = MAX_FRAME_BYTES - HEADER_BYTES;

/// Most bytes of the frames of one request.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;

/// The kind of a frame: the meaning of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of stdout, of a terminal, of a file.
    Stdout = 1,
    /// Bytes of stderr.
    Stderr = 2,
    /// A record as JSON.
    Record = 3,
    /// A gap as JSON: how much is missing at this place.
    Gap = 4,
    /// The end as JSON; no frame follows it.
    End = 5,
}

impl Kind {
    /// Returns the kind of this number.
    pub fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Stdout, Kind::Stderr, Kind::Record, Kind::Gap, Kind::End].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The meaning of the payload.
    pub kind: Kind,
    /// The bytes behind the header.
    pub payload: &'a [u8],
}

/// The reason why bytes are no whole frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no such kind.
    Kind(u8),
    /// One of the three bytes behind the kind is not zero.
    Reserved,
    /// The frame is longer than [`MAX_FRAME_BYTES`].
    TooLong(u64),
    /// The bytes end within a frame.
    Cut,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kind(kind) => write!(f, "a frame of kind {kind}: there are kinds 1 to 5"),
            Fault::Reserved => write!(f, "bytes 2 to 4 of a frame must be zero"),
            Fault::TooLong(bytes) => write!(f, "a frame of {bytes} bytes: at most {MAX_FRAME_BYTES} are allowed"),
            Fault::Cut => write!(f, "the bytes end within a frame"),
        }
    }
}

impl std::error::Error for Fault {}

/// Returns the header of a frame whose payload has `length` bytes, at most [`MAX_PAYLOAD_BYTES`].
pub fn header(kind: Kind, length: usize) -> [u8; HEADER_BYTES] {
    debug_assert!(length <= MAX_PAYLOAD_BYTES);
    let [a, b, c, d] = (length as u32).to_be_bytes();
    [kind as u8, 0, 0, 0, a, b, c, d]
}

/// Reads a header: the kind and the length of the payload.
pub fn read_header(bytes: &[u8; HEADER_BYTES]) -> Result<(Kind, usize), Fault> {
    let [kind, x, y, z, a, b, c, d] = *bytes;
    let kind = Kind::from_byte(kind).ok_or(Fault::Kind(kind))?;
    if [x, y, z] != [0; 3] {
        return Err(Fault::Reserved);
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > MAX_PAYLOAD_BYTES {
        return Err(Fault::TooLong(length as u64 + HEADER_BYTES as u64));
    }
    Ok((kind, length))
}

/// Adds a frame to `out`; the payload has at most [`MAX_PAYLOAD_BYTES`].
pub fn push(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    out.extend_from_slice(&header(kind, payload.len()));
    out.extend_from_slice(payload);
}

/// Returns the frames of `bytes` in order; the first fault is the last item.
pub fn frames(bytes: &[u8]) -> Frames<'_> {
    Frames { rest: bytes }
}

/// The frames of some bytes.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    fn read(&mut self) -> Result<Frame<'a>, Fault> {
        let (head, behind) = self.rest.split_first_chunk::<HEADER_BYTES>().ok_or(Fault::Cut)?;
        let (kind, length) = read_header(head)?;
        let (payload, rest) = behind.split_at_checked(length).ok_or(Fault::Cut)?;
        self.rest = rest;
        Ok(Frame { kind, payload })
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.rest = &[];
        }
        Some(read)
    }
}

/// Returns how many frames `bytes` are, all of them whole.
pub fn check(bytes: &[u8]) -> Result<usize, Fault> {
    frames(bytes).try_fold(0, |count, frame| frame.map(|_| count + 1))
}

/// Returns how many of the first `most` bytes are whole frames, together.
pub fn whole_within(bytes: &[u8], most: usize) -> usize {
    let mut end = 0;
    for frame in frames(bytes).map_while(Result::ok) {
        let next = end + HEADER_BYTES + frame.payload.len();
        if next > most {
            break;
        }
        end = next;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [Kind; 5] = [Kind::Stdout, Kind::Stderr, Kind::Record, Kind::Gap, Kind::End];

    #[test]
    fn bytes_that_are_no_frames_have_a_fault() {
        let long = [&header(Kind::Stdout, MAX_PAYLOAD_BYTES)[..], &[7; MAX_PAYLOAD_BYTES]].concat();
        for (bytes, result) in [
            (&b""[..], Ok(0)),
            (b"\x01\0\0\0\0\0\0\0", Ok(1)),
            (b"\x02\0\0\0\0\0\0\x01x\x05\0\0\0\0\0\0\x02{}", Ok(2)),
            (&long, Ok(1)),
            (b"\0\0\0\0\0\0\0\0", Err(Fault::Kind(0))),
            (b"\x06\0\0\0\0\0\0\0", Err(Fault::Kind(6))),
            (b"\x01\0\x01\0\0\0\0\0", Err(Fault::Reserved)),
            (b"\x01\0\0\0\0\x03\xff\xf9", Err(Fault::TooLong(262_145))),
            (b"\x01\0\0\0\xff\xff\xff\xff", Err(Fault::TooLong(4_294_967_303))),
            (b"\x01\0\0\0\0\0\0", Err(Fault::Cut)),
            (b"\x01\0\0\0\0\0\0\x02x", Err(Fault::Cut)),
        ] {
            assert_eq!(check(bytes), result, "{:?}", &bytes[..bytes.len().min(16)]);
        }
    }

    #[test]
    fn iteration_ends_at_the_first_fault() {
        assert_eq!(frames(b"\x09\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0").collect::<Vec<_>>(), [Err(Fault::Kind(9))]);
    }

    proptest! {
        #[test]
        fn frames_are_read_as_they_were_pushed(
            items in prop::collection::vec((0..5usize, prop::collection::vec(any::<u8>(), 0..50)), 0..10),
            most in 0..400usize,
        ) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for (kind, payload) in &items {
                push(&mut bytes, KINDS[*kind], payload);
                ends.push(bytes.len());
            }
            let read: Vec<_> = frames(&bytes).map(|frame| frame.unwrap()).map(|f| (f.kind, f.payload)).collect();
            let given: Vec<_> = items.iter().map(|(kind, payload)| (KINDS[*kind], payload.as_slice())).collect();
            prop_assert_eq!(read, given);
            let whole = whole_within(&bytes, most);
            prop_assert_eq!(Some(&whole), ends.iter().rfind(|end| **end <= most));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = check(&bytes);
        }
    }
}
