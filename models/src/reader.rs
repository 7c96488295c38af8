//! Reads little-endian values off the front of bytes, and never past their end.

/// What is left to read, or that it ends before what it says it holds.
pub(crate) type Read<T> = Result<T, String>;

/// So many bytes.
pub(crate) fn bytes<'a>(rest: &mut &'a [u8], len: u64) -> Read<&'a [u8]> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    rest.split_off(..len).ok_or_else(|| "is cut".to_owned())
}

/// As many bytes as a number has.
pub(crate) fn next<const N: usize>(rest: &mut &[u8]) -> Read<[u8; N]> {
    Ok(bytes(rest, N as u64)?.try_into().expect("as many as were asked for"))
}

/// An unsigned number of 4 bytes.
pub(crate) fn u32(rest: &mut &[u8]) -> Read<u32> {
    next(rest).map(u32::from_le_bytes)
}

/// One of 8 bytes.
pub(crate) fn u64(rest: &mut &[u8]) -> Read<u64> {
    next(rest).map(u64::from_le_bytes)
}

/// A text of so many bytes.
pub(crate) fn text(rest: &mut &[u8], len: u64) -> Read<String> {
    Ok(String::from_utf8_lossy(bytes(rest, len)?).into_owned())
}
