//! Keys and values in pages of a pool.

/// Keys and values lie in pages of a pool that sequences share: a block table says which page holds which positions of
/// which sequence. See [PagedAttention](https://arxiv.org/abs/2309.06180).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Pages {
    /// Pages of the pool.
    pub pages: u32,
    /// Positions of a page.
    pub page_len: u32,
}

impl Pages {
    /// A pool of `pages` pages of `page_len` positions each.
    pub const fn new(pages: u32, page_len: u32) -> Self {
        Self { pages, page_len }
    }

    /// Entries of a sequence's row of the block table, for as many positions.
    pub const fn table_len(&self, positions: u32) -> u32 {
        positions.div_ceil(self.page_len)
    }
}
