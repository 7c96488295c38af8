//! The cache of all sequences: a pool of pages, and what says whose they are.

use crate::model::{Model, SEQUENCES};
use crate::pages::PageAllocator;
use std::error::Error;
use wgpu::util::DeviceExt as _;
use wgpu_attention::{Pages, wgpu};

/// Positions of a page.
pub(crate) const PAGE_LEN: u32 = 16;
/// Of a buffer with one word a sequence.
pub(crate) const PER_SEQUENCE_BYTES: u64 = SEQUENCES as u64 * 4;

pub(crate) struct Cache {
    pub(crate) pages: Pages,
    /// `[pages, page_len, kv_heads, head_dim]` each.
    pub(crate) k: wgpu::Buffer,
    pub(crate) v: wgpu::Buffer,
    /// `[sequences, table_len]`.
    pub(crate) block_table: wgpu::Buffer,
    /// `[sequences]`: positions that are taken. Appending advances them on the device.
    pub(crate) kv_lens: wgpu::Buffer,
    /// `[sequences]`: rows that the next step of prefill appends.
    pub(crate) new_lens: wgpu::Buffer,
    /// `[sequences]`: rows that had no room.
    pub(crate) status: wgpu::Buffer,
    pub(crate) cos: wgpu::Buffer,
    pub(crate) sin: wgpu::Buffer,
    /// `kv_lens` by the host's own count: what the device will have come to.
    pub(crate) lens: [u32; SEQUENCES],
    allocator: PageAllocator,
}

impl Cache {
    /// An empty one, of as many pages as all sequences need in the end.
    pub(crate) fn new(device: &wgpu::Device, queue: &wgpu::Queue, model: &Model) -> Self {
        let ends = model.prompts.map(|prompt| (prompt + model.tokens).div_ceil(PAGE_LEN));
        let pages = Pages::new(ends.iter().sum(), PAGE_LEN);
        let table_len = pages.table_len(model.capacity()) as usize;
        let allocator = PageAllocator::new(pages.pages, PAGE_LEN, SEQUENCES, table_len);
        let buffer = |label, size| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_DST
                    | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let table = |label, values: &[f32]| {
            device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
                label: Some(label),
                contents: bytemuck::cast_slice(values),
                usage: wgpu::BufferUsages::STORAGE,
            })
        };
        let pool_bytes = model.cache_bytes(pages.pages * PAGE_LEN) / 2;
        let (cos, sin) = model.rotary_tables();
        let cache = Self {
            pages,
            k: buffer("k", pool_bytes),
            v: buffer("v", pool_bytes),
            block_table: buffer("block table", allocator.table.len() as u64 * 4),
            // New buffers are 0: every sequence is empty.
            kv_lens: buffer("kv_lens", PER_SEQUENCE_BYTES),
            new_lens: buffer("new_lens", PER_SEQUENCE_BYTES),
            status: buffer("append status", PER_SEQUENCE_BYTES),
            cos: table("cos", &cos),
            sin: table("sin", &sin),
            lens: [0; SEQUENCES],
            allocator,
        };
        let table = bytemuck::cast_slice(&cache.allocator.table);
        queue.write_buffer(&cache.block_table, 0, table);
        cache
    }

    /// Rows of each prompt that the next step of prefill takes.
    pub(crate) fn rest_of_prompts(&self, model: &Model) -> [u32; SEQUENCES] {
        std::array::from_fn(|b| (model.prompts[b] - self.lens[b]).min(model.prefill_rows))
    }

    /// Makes room for `rows` more of each sequence. What is written here arrives before the next submission runs.
    pub(crate) fn grow(
        &mut self,
        queue: &wgpu::Queue,
        rows: &[u32; SEQUENCES],
    ) -> Result<(), Box<dyn Error>> {
        queue.write_buffer(&self.new_lens, 0, bytemuck::cast_slice(rows));
        for (sequence, rows) in rows.iter().enumerate() {
            self.lens[sequence] += rows;
            let new = self.allocator.reserve(sequence, self.lens[sequence])?;
            if !new.is_empty() {
                let offset = new.start as u64 * 4;
                let entries = bytemuck::cast_slice(&self.allocator.table[new]);
                queue.write_buffer(&self.block_table, offset, entries);
            }
        }
        Ok(())
    }

    pub(crate) fn pages_in_use(&self) -> usize {
        self.pages.pages as usize - self.allocator.free()
    }
}
