//! Caches and rows in host memory, as the runner appends and turns them.

use crate::append::{Append, AppendInputs};
use crate::encoding::{Data, encoded};
use crate::error::{BindError, Error};
use crate::host::Transfer;
use crate::operand::Operand;
use crate::outputs::Output;
use crate::rotary::{RotaryEmbedding, RotaryInputs};

/// A cache in host memory after an [`Append`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AppendOutputs {
    /// As the append lays k out.
    pub k: Vec<f32>,
    /// As the append lays v out.
    pub v: Vec<f32>,
    /// `[batch]`.
    pub kv_lens: Vec<u32>,
}

/// What goes up for an append: some of it is what comes down too.
pub(crate) struct AppendTransfer<'a> {
    pub(crate) inputs: Vec<(Operand, Data<'a>)>,
    /// Contents at first.
    pub(crate) caches: Vec<(Output, Data<'a>)>,
    pub(crate) kv_lens: &'a [u32],
    /// At first.
    pub(crate) status: Vec<u32>,
}

impl<'a> AppendTransfer<'a> {
    /// Checks everything that is known of the inputs.
    pub(crate) fn new(append: &Append, inputs: &AppendInputs<'a>) -> Result<Self, Error> {
        append.validate()?;
        let given = append.new_lens || !inputs.new_lens.is_empty();
        append.check_all_lens(inputs.kv_lens, given.then_some(inputs.new_lens), |index| {
            u32::try_from(index).is_ok_and(|b| append.is_refused(inputs, b))
        })?;
        let Append { batch, kv_heads, new_len, head_dim, v_head_dim, dtype, kv_dtype, .. } =
            *append;
        let (cache_batch, cache_len) = append.cache_extents();
        let extent = |strides: crate::Strides, [batch, len, dim]: [u32; 3]| {
            strides.extent(batch, kv_heads, len, dim).expect("validated")
        };
        let sequences = append.counted.then_some(u64::from(batch));
        let earlier = Some(inputs.append_status).filter(|status| !status.is_empty());
        let earlier = match earlier {
            Some(status) => exactly(Operand::AppendStatus, status, sequences)?,
            None => None,
        };
        let mut transfer = Self {
            inputs: Vec::new(),
            caches: Vec::new(),
            kv_lens: inputs.kv_lens,
            status: earlier.map_or_else(|| vec![0; inputs.kv_lens.len()], <[u32]>::to_vec),
        };
        for (operand, data, required) in [
            (Operand::KNew, inputs.k_new, extent(append.k_new, [batch, new_len, head_dim])),
            (Operand::VNew, inputs.v_new, extent(append.v_new, [batch, new_len, v_head_dim])),
        ] {
            transfer.give(operand, encoded(at_least(operand, data, required)?, dtype));
        }
        for (operand, data, required) in [
            (Operand::K, inputs.k, extent(append.k, [cache_batch, cache_len, head_dim])),
            (Operand::V, inputs.v, extent(append.v, [cache_batch, cache_len, v_head_dim])),
        ] {
            let data = at_least(operand, data, required)?;
            let output = Output { operand, elements: data.len(), dtype: kv_dtype };
            transfer.caches.push((output, encoded(data, kv_dtype)));
        }
        let tables = append.rotary.map(|rotary| rotary.table_len());
        for (operand, data) in [(Operand::Cos, inputs.cos), (Operand::Sin, inputs.sin)] {
            if let Some(data) = exactly(operand, data, tables)? {
                transfer.give(operand, Data::F32(data));
            }
        }
        if append.new_lens {
            let bytes = bytemuck::cast_slice(inputs.new_lens).to_vec();
            transfer.give(Operand::NewLens, Data::Bytes(bytes));
        }
        let entries = append.pages.map(|_| u64::from(batch) * u64::from(append.table_row()));
        if let Some(table) = exactly(Operand::BlockTable, inputs.block_table, entries)? {
            check_pages(append, inputs, table)?;
            let bytes = bytemuck::cast_slice(table).to_vec();
            transfer.give(Operand::BlockTable, Data::Bytes(bytes));
        }
        Ok(transfer)
    }

    fn give(&mut self, operand: Operand, data: Data<'a>) {
        if !data.bytes().is_empty() {
            self.inputs.push((operand, data));
        }
    }

    /// Every tensor becomes a buffer of its own.
    pub(crate) fn check_sizes(&self, available: u64) -> Result<(), BindError> {
        let caches = self.caches.iter().map(|(output, data)| (output.operand, data));
        for (operand, data) in
            self.inputs.iter().map(|(operand, data)| (*operand, data)).chain(caches)
        {
            let required = data.bytes().len() as u64;
            if required > available {
                let what = operand.name().into();
                return Err(BindError::BufferTooLarge { what, required, available });
            }
        }
        Ok(())
    }
}

/// That every new row has a page.
fn check_pages(append: &Append, inputs: &AppendInputs<'_>, table: &[u32]) -> Result<(), Error> {
    let Some(crate::Pages { pages, page_len }) = append.pages else { return Ok(()) };
    let row = append.table_row() as usize;
    let refused = |b: usize| u32::try_from(b).is_ok_and(|b| append.is_refused(inputs, b));
    for (b, first) in inputs.kv_lens.iter().enumerate().filter(|(b, _)| !refused(*b)) {
        let new_len = inputs.new_lens.get(b).copied().unwrap_or(append.new_len);
        let first = first - if append.counted { new_len } else { 0 };
        let taken = first / page_len..(first + new_len).div_ceil(page_len);
        for entry in taken.filter(|_| new_len > 0) {
            let index = b * row + entry as usize;
            let found = table[index];
            if found >= pages {
                return Err(Error::NoSuchPage { index, found, pages });
            }
        }
    }
    Ok(())
}

/// What goes up and comes down of a rotary embedding.
pub(crate) fn rotary_transfer<'a>(
    embedding: &RotaryEmbedding,
    inputs: &RotaryInputs<'a>,
) -> Result<Transfer<'a>, Error> {
    embedding.validate()?;
    let RotaryEmbedding { batch, heads, len, head_dim, dtype, out_dtype, .. } = *embedding;
    let extent =
        |strides: crate::Strides| strides.extent(batch, heads, len, head_dim).expect("validated");
    let x = at_least(Operand::X, inputs.x, extent(embedding.x))?;
    let mut all = vec![(Operand::X, encoded(x, dtype))];
    let tables = Some(embedding.rotary.table_len());
    for (operand, data) in [(Operand::Cos, inputs.cos), (Operand::Sin, inputs.sin)] {
        all.extend(exactly(operand, data, tables)?.map(|data| (operand, Data::F32(data))));
    }
    let offsets = embedding.offsets.then_some(u64::from(batch));
    if let Some(offsets) = exactly(Operand::PosOffsets, inputs.pos_offsets, offsets)? {
        let bytes = bytemuck::cast_slice(offsets).to_vec();
        all.push((Operand::PosOffsets, Data::Bytes(bytes)));
    }
    let lens = embedding.new_lens.then_some(u64::from(batch));
    if let Some(lens) = exactly(Operand::NewLens, inputs.new_lens, lens)? {
        all.push((Operand::NewLens, Data::Bytes(bytemuck::cast_slice(lens).to_vec())));
        embedding.check_counted(inputs.pos_offsets, lens)?;
    } else {
        embedding.check_offsets(inputs.pos_offsets)?;
    }
    all.retain(|(_, data)| !data.bytes().is_empty());
    let mut transfer = Transfer { inputs: all, buffers: Vec::new(), outputs: Vec::new() };
    transfer.take(Operand::Out, extent(embedding.out), out_dtype)?;
    Ok(transfer)
}

/// The part of a slice that is used.
fn at_least(operand: Operand, data: &[f32], required: u64) -> Result<&[f32], Error> {
    let actual = data.len() as u64;
    if actual < required {
        return Err(Error::Length { tensor: operand.name().into(), required, actual });
    }
    // No longer than `data`, so it fits a usize.
    Ok(&data[..usize::try_from(required).unwrap_or(data.len())])
}

/// A slice of so many elements; of what is not asked for, nothing may be given.
fn exactly<T>(operand: Operand, data: &[T], required: Option<u64>) -> Result<Option<&[T]>, Error> {
    let actual = data.len() as u64;
    match required {
        Some(required) if actual == required => Ok(Some(data)),
        Some(required) => Err(Error::Length { tensor: operand.name().into(), required, actual }),
        None if data.is_empty() => Ok(None),
        None => Err(BindError::Unused { tensor: operand.name().into() }.into()),
    }
}
