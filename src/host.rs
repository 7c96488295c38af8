//! Tensors in host memory, as the runner takes and gives them.

use crate::dropout::{DropoutMask, seed_words};
use crate::encoding::{Data, encoded, mask_bytes};
use crate::error::{BindError, Error};
use crate::inputs::Inputs;
use crate::lengths::{check_pages, check_sequences, sequence_counts, table_len};
use crate::mask::Diagonal;
use crate::merge::Merge;
use crate::operand::Operand;
use crate::outputs::Output;
use crate::pairs::MaskFormat;
use crate::problem::Problem;
use crate::shape::DType;

/// What goes up and what comes down, by operand.
pub(crate) struct Transfer<'a> {
    pub(crate) inputs: Vec<(Operand, Data<'a>)>,
    /// Buffers of the caller's functions.
    pub(crate) buffers: Vec<(String, Data<'a>)>,
    pub(crate) outputs: Vec<Output>,
}

impl<'a> Transfer<'a> {
    pub(crate) fn of_problem(problem: &Problem, inputs: &Inputs<'a>) -> Result<Self, Error> {
        problem.validate()?;
        let mut transfer = Self::of_inputs(problem, inputs)?;
        let s = problem.tensor_shape();
        let rows = u64::from(s.batch) * u64::from(s.heads) * u64::from(s.q_len);
        let out = problem.out.extent(s.batch, s.heads, s.q_len, s.v_head_dim).expect("validated");
        transfer.take(Operand::Out, out, problem.out_dtype)?;
        let matrix = rows.saturating_mul(s.kv_len.into());
        for (operand, asked, elements) in [
            (Operand::Lse, problem.lse, rows),
            (Operand::Weights, problem.weights, matrix),
            (Operand::Scores, problem.scores.is_some(), matrix),
        ] {
            if asked {
                transfer.take(operand, elements, DType::F32)?;
            }
        }
        Ok(transfer)
    }

    /// What an attention reads, of a problem that is well-formed.
    pub(crate) fn of_inputs(problem: &Problem, inputs: &Inputs<'a>) -> Result<Self, Error> {
        check_sequences(problem, inputs)?;

        let s = problem.tensor_shape();
        let extent = |strides: crate::Strides, [batch, heads, len, dim]: [u32; 4]| {
            strides.extent(batch, heads, len, dim).expect("validated")
        };
        let (kv_batch, kv_len) = problem.kv_extents();
        let mut transfer = Self { inputs: Vec::new(), buffers: Vec::new(), outputs: Vec::new() };
        for (operand, data, required, dtype) in [
            (
                Operand::Q,
                inputs.q,
                extent(problem.q, [s.batch, s.heads, s.q_len, s.head_dim]),
                problem.dtype,
            ),
            (
                Operand::K,
                inputs.k,
                extent(problem.k, [kv_batch, s.kv_heads, kv_len, s.head_dim]),
                problem.kv_dtype,
            ),
            (
                Operand::V,
                inputs.v,
                extent(problem.v, [kv_batch, s.kv_heads, kv_len, s.v_head_dim]),
                problem.kv_dtype,
            ),
        ] {
            let data = checked(operand, data, required, false)?;
            transfer.give(operand, encoded(data, dtype));
        }
        let pairs = |pairs: crate::Pairs| pairs.extent(pairs.axes).expect("validated");
        let mask_elements = problem.boolean_mask.map(|mask| pairs(mask.pairs));
        if let Some(mask) = optional(Operand::Mask, inputs.mask, mask_elements, false)? {
            let format = problem.boolean_mask.map_or(MaskFormat::Bytes, |mask| mask.format);
            transfer.give(Operand::Mask, Data::Bytes(mask_bytes(mask, format)));
        }
        let bias_elements = problem.bias.map(|bias| pairs(bias.pairs));
        if let Some(bias) = optional(Operand::Bias, inputs.bias, bias_elements, false)? {
            let dtype = problem.bias.map_or(DType::F32, |bias| bias.dtype);
            transfer.give(Operand::Bias, encoded(bias, dtype));
        }
        let keep_elements = problem.keep_pairs().map(pairs);
        if let Some(keep) = optional(Operand::Keep, inputs.keep, keep_elements, true)? {
            transfer.give(Operand::Keep, Data::Bytes(mask_bytes(keep, MaskFormat::Bytes)));
        }
        if problem.dropout.is_some_and(|dropout| dropout.mask == DropoutMask::Seeded) {
            transfer.give_seed(inputs.seed);
        } else if inputs.seed != 0 {
            return Err(BindError::Unused { tensor: Operand::Seed.name().into() }.into());
        }
        let heads = u64::from(s.heads);
        let sequences = u64::from(problem.shape.batch);
        let slopes = problem.alibi.map(|slopes| slopes.count(&problem.shape));
        for (operand, data, elements) in [
            (Operand::AlibiSlopes, inputs.alibi_slopes, slopes),
            (Operand::Sinks, inputs.sinks, problem.sinks.then_some(heads)),
        ] {
            if let Some(data) = optional(operand, data, elements, true)? {
                transfer.give(operand, Data::F32(data));
            }
        }
        let per_sequence = problem.mask.diagonal == Diagonal::PerSequence;
        let offsets = per_sequence.then_some(sequences);
        if let Some(data) = optional(Operand::DiagOffsets, inputs.diag_offsets, offsets, true)? {
            transfer.give(Operand::DiagOffsets, Data::Bytes(bytemuck::cast_slice(data).to_vec()));
        }
        check_pages(problem, inputs)?;
        let [q_lens, kv_lens, cu_seqlens] = sequence_counts(problem);
        for (operand, data, elements) in [
            (Operand::QLens, inputs.q_lens, q_lens),
            (Operand::KvLens, inputs.kv_lens, kv_lens),
            (Operand::CuSeqlensQ, inputs.cu_seqlens_q, cu_seqlens),
            (Operand::CuSeqlensK, inputs.cu_seqlens_k, cu_seqlens),
            (Operand::BlockTable, inputs.block_table, table_len(problem)),
        ] {
            if let Some(data) = optional(operand, data, elements, true)? {
                transfer.give(operand, Data::Bytes(bytemuck::cast_slice(data).to_vec()));
            }
        }
        let wanted = problem.function_buffers()?;
        for (name, data) in &inputs.buffers {
            if !wanted.iter().any(|(other, _)| **other == **name) {
                return Err(BindError::Unused { tensor: (*name).to_owned().into() }.into());
            }
            if data.is_empty() {
                let tensor = (*name).to_owned().into();
                return Err(BindError::TooSmall { tensor, required: 4, actual: 0 }.into());
            }
            let bytes = Data::Bytes(bytemuck::cast_slice(data).to_vec());
            transfer.buffers.push(((*name).to_owned(), bytes));
        }
        if problem.block_mask {
            let what = "a block mask in host memory";
            return Err(crate::PlanError::NotSupported { what }.into());
        }
        Ok(transfer)
    }

    pub(crate) fn of_merge(
        merge: &Merge,
        out_parts: &'a [f32],
        lse_parts: &'a [f32],
    ) -> Result<Self, Error> {
        merge.validate()?;
        let s = merge.shape;
        let mut transfer = Self { inputs: Vec::new(), buffers: Vec::new(), outputs: Vec::new() };
        let [out_elements, lse_elements] = merge.parts_elements().map(|n| n.expect("validated"));
        let out_parts = checked(Operand::OutParts, out_parts, out_elements, false)?;
        let lse_parts = checked(Operand::LseParts, lse_parts, lse_elements, false)?;
        transfer.give(Operand::OutParts, encoded(out_parts, merge.parts_dtype));
        transfer.give(Operand::LseParts, Data::F32(lse_parts));
        let out = merge.out.extent(s.batch, s.heads, s.q_len, s.v_head_dim).expect("validated");
        transfer.take(Operand::Out, out, merge.out_dtype)?;
        if merge.lse {
            transfer.take(Operand::Lse, merge.rows(), DType::F32)?;
        }
        Ok(transfer)
    }

    pub(crate) fn give_seed(&mut self, seed: u64) {
        let words = seed_words(seed);
        self.give(Operand::Seed, Data::Bytes(bytemuck::cast_slice(&words).to_vec()));
    }

    pub(crate) fn give(&mut self, operand: Operand, data: Data<'a>) {
        if !data.bytes().is_empty() {
            self.inputs.push((operand, data));
        }
    }

    pub(crate) fn take(
        &mut self,
        operand: Operand,
        elements: u64,
        dtype: DType,
    ) -> Result<(), Error> {
        let bytes = DType::F32.bytes_of(elements);
        let fits = bytes.and_then(|bytes| isize::try_from(bytes).ok());
        let tensor = operand.name();
        let elements = fits.map(|_| elements).and_then(|n| usize::try_from(n).ok());
        let elements = elements.ok_or(crate::ProblemError::Unaddressable { tensor })?;
        self.outputs.push(Output { operand, elements, dtype });
        Ok(())
    }

    /// Every tensor becomes a buffer of its own.
    pub(crate) fn check_sizes(&self, available: u64) -> Result<(), BindError> {
        let inputs =
            self.inputs.iter().map(|(operand, data)| (operand.name(), data.bytes().len() as u64));
        let outputs = self.outputs.iter().map(|out| (out.operand.name(), out.bytes()));
        let named = self.buffers.iter().map(|(name, data)| (&**name, data.bytes().len() as u64));
        for (name, required) in inputs.chain(outputs).chain(named) {
            if required > available {
                let what = name.to_owned().into();
                return Err(BindError::BufferTooLarge { what, required, available });
            }
        }
        Ok(())
    }

    /// Whether it comes down.
    pub(crate) fn asks(&self, operand: Operand) -> bool {
        self.outputs.iter().any(|out| out.operand == operand)
    }

    /// The f32 data given as `operand`; empty where it is not needed.
    #[cfg(feature = "cpu")]
    pub(crate) fn input(&self, operand: Operand) -> &'a [f32] {
        match self.inputs.iter().find(|(other, _)| *other == operand) {
            Some((_, Data::F32(data))) => data,
            _ => &[],
        }
    }

    /// The seed given; 0 where there is none.
    #[cfg(feature = "cpu")]
    pub(crate) fn seed(&self) -> u64 {
        let given = self.inputs.iter().find(|(operand, _)| *operand == Operand::Seed);
        given.map_or(0, |(_, data)| {
            let [low, high]: [u32; 2] = bytemuck::pod_read_unaligned(data.bytes());
            u64::from(high) << 32 | u64::from(low)
        })
    }

    /// Elements asked of `operand`.
    #[cfg(feature = "cpu")]
    pub(crate) fn output_len(&self, operand: Operand) -> Option<usize> {
        self.outputs.iter().find(|out| out.operand == operand).map(|out| out.elements)
    }
}

/// The part of a slice that is used. `exact`: a longer one is an error too.
pub(crate) fn checked<T>(
    operand: Operand,
    data: &[T],
    required: u64,
    exact: bool,
) -> Result<&[T], Error> {
    let actual = data.len() as u64;
    if actual < required || exact && actual > required {
        return Err(Error::Length { tensor: operand.name().into(), required, actual });
    }
    // No longer than `data`, so it fits a usize.
    Ok(&data[..usize::try_from(required).unwrap_or(data.len())])
}

/// As `checked`, of an input that the problem may not have: then it may not be given.
pub(crate) fn optional<T>(
    operand: Operand,
    data: &[T],
    required: Option<u64>,
    exact: bool,
) -> Result<Option<&[T]>, Error> {
    match required {
        Some(required) => checked(operand, data, required, exact).map(Some),
        None if data.is_empty() => Ok(None),
        None => Err(BindError::Unused { tensor: operand.name().into() }.into()),
    }
}
