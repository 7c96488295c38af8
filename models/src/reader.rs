//! Reads little-endian values off the front of bytes, and never past their end.

/// What is left to read, and how much was.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) rest: &'a [u8],
    pub(crate) read: usize,
}

/// The bytes end before what they say they hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut;

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, read: 0 }
    }

    pub(crate) fn bytes(&mut self, len: u64) -> Result<&'a [u8], Cut> {
        let len = usize::try_from(len).map_err(|_| Cut)?;
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(Cut)?;
        self.rest = rest;
        self.read += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Cut> {
        let bytes = self.bytes(N as u64)?;
        bytes.try_into().map_err(|_| Cut)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Cut> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Cut> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Cut> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Cut> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn f32(&mut self) -> Result<f32, Cut> {
        self.array().map(f32::from_le_bytes)
    }

    pub(crate) fn f64(&mut self) -> Result<f64, Cut> {
        self.array().map(f64::from_le_bytes)
    }
}
