//! Random numbers that are the same in every run.

/// Marsaglia's xorshift64.
pub(crate) struct Random(u64);

impl Random {
    /// Seeds that are close give streams that are not.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..8).for_each(|_| {
            random.next();
        });
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        u32::try_from((self.next() >> 16) % u64::from(n)).expect("below a u32")
    }

    /// In `-1..1`.
    pub(crate) fn unit(&mut self) -> f32 {
        let bits = i16::try_from(self.next() >> 49).expect("15 bits");
        let fine = i16::try_from(self.next() >> 55).expect("9 bits");
        (f32::from(bits) + f32::from(fine) / 512.0) / 16384.0 - 1.0
    }

    /// `0..n` in random order.
    pub(crate) fn permutation(&mut self, n: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i as usize, self.below(i + 1) as usize);
        }
        order
    }
}
