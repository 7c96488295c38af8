//! Lengths and pages in host memory: how many a problem takes, and that they fit it.

use crate::error::Error;
use crate::host::checked;
use crate::inputs::Inputs;
use crate::operand::Operand;
use crate::problem::{Lengths, Problem};
use crate::sequence::Sequence;

/// Entries of `q_lens`, `kv_lens` and each of the `cu_seqlens`, where the problem has them.
pub(crate) fn sequence_counts(problem: &Problem) -> [Option<u64>; 3] {
    let batch = u64::from(problem.shape.batch);
    match problem.lengths {
        Lengths::Full => [None; 3],
        Lengths::PerSequence { q, kv } => [q.then_some(batch), kv.then_some(batch), None],
        Lengths::Packed => [None, None, Some(batch + 1)],
    }
}

/// Entries of `block_table`, where the problem has one.
pub(crate) fn table_len(problem: &Problem) -> Option<u64> {
    let s = problem.shape;
    problem.pages.map(|pages| u64::from(s.batch) * u64::from(pages.table_len(s.kv_len)))
}

/// That the pages of every position within a sequence's length are the pool's.
pub(crate) fn check_pages(problem: &Problem, inputs: &Inputs<'_>) -> Result<(), Error> {
    let (Some(pages), Some(needed)) = (problem.pages, table_len(problem)) else { return Ok(()) };
    let table = checked(Operand::BlockTable, inputs.block_table, needed, true)?;
    let row = pages.table_len(problem.shape.kv_len);
    for batch in 0..problem.shape.batch {
        let first = batch as usize * row as usize;
        let used = pages.table_len(Sequence::of(problem, inputs, batch).kv_len) as usize;
        let wrong = table[first..][..used].iter().position(|page| *page >= pages.pages);
        if let Some(at) = wrong.map(|at| first + at) {
            let (found, pages) = (table[at], pages.pages);
            return Err(Error::NoSuchPage { index: at, found, pages });
        }
    }
    Ok(())
}

/// Lengths in host memory are checked; those in buffers are clamped where they are read.
pub(crate) fn check_sequences(problem: &Problem, inputs: &Inputs<'_>) -> Result<(), Error> {
    let s = problem.shape;
    let [q_lens, kv_lens, cu_seqlens] = sequence_counts(problem);
    for (operand, lens, needed, max) in [
        (Operand::QLens, inputs.q_lens, q_lens, s.q_len),
        (Operand::KvLens, inputs.kv_lens, kv_lens, s.kv_len),
    ] {
        let Some(needed) = needed else { continue };
        for (index, found) in checked(operand, lens, needed, true)?.iter().copied().enumerate() {
            if found > max {
                let tensor = operand.name();
                return Err(Error::LengthTooLarge { tensor, index, found, max });
            }
        }
    }
    for (operand, starts, total) in [
        (Operand::CuSeqlensQ, inputs.cu_seqlens_q, s.q_len),
        (Operand::CuSeqlensK, inputs.cu_seqlens_k, s.kv_len),
    ] {
        let Some(needed) = cu_seqlens else { continue };
        let starts = checked(operand, starts, needed, true)?;
        let last = starts.len() - 1;
        for (index, found) in starts.iter().copied().enumerate() {
            let before = index.checked_sub(1).map_or(0, |before| starts[before]);
            let wrong = match index {
                // One entry alone is the first and the last.
                0 if found != 0 => Some("0".to_owned()),
                _ if index == last && found != total => Some(format!("{total}, the tokens in all")),
                _ if found < before => Some(format!("at least {before}")),
                _ => None,
            };
            if let Some(needed) = wrong {
                let tensor = operand.name();
                return Err(Error::Sequences { tensor, index, found, needed });
            }
        }
    }
    Ok(())
}
