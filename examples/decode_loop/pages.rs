//! Who has which page: a free list on the host.

use std::error::Error;

/// Entries of the block table that name no page yet.
const NONE: u32 = u32::MAX;

/// Hands out the pages of a pool.
pub(crate) struct PageAllocator {
    page_len: u32,
    /// Entries of a sequence's row of the table.
    row: usize,
    free: Vec<u32>,
    /// `[sequences, row]`: pages in the order of their positions.
    pub(crate) table: Vec<u32>,
}

impl PageAllocator {
    pub(crate) fn new(pages: u32, page_len: u32, sequences: usize, row: usize) -> Self {
        let free = (0..pages).rev().collect();
        Self { page_len, row, free, table: vec![NONE; sequences * row] }
    }

    /// Gives `sequence` pages for `len` positions; the entries of the table that are new.
    pub(crate) fn reserve(
        &mut self,
        sequence: usize,
        len: u32,
    ) -> Result<std::ops::Range<usize>, Box<dyn Error>> {
        let first = sequence * self.row;
        let row = &mut self.table[first..first + self.row];
        let had = row.iter().take_while(|page| **page != NONE).count();
        let needed = (len.div_ceil(self.page_len) as usize).max(had);
        let new = row.get_mut(had..needed).ok_or("a sequence outgrows its row of the table")?;
        for page in new {
            // An engine would end or move another sequence here.
            *page = self.free.pop().ok_or("the pool has no free page")?;
        }
        Ok(first + had..first + needed)
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }
}
