//! Rows turned by their positions before attention.

use crate::Result;
use crate::answer::{Machines, round_into};
use crate::keys::Keys;
use crate::options::{Axes, Backend, Call};
use crate::tensors::{Contents, Tensor};
use std::collections::BTreeMap;
use std::ops::Range;
use wgpu_attention::{
    DType, Diagonal, Pages, Problem, Rotary, RotaryEmbedding, RotaryInputs, Shape, Strides,
    reference,
};

/// Neighbouring rows of one sequence.
#[derive(Clone, Debug)]
struct Rows {
    /// Batch entry, or page, of the tensor, and rows of it.
    outer: u32,
    rows: Range<u32>,
    /// Position of the first.
    pos: u32,
}

/// One sequence, as tensors hold it.
struct Sequence {
    outer: u32,
    q: Range<u32>,
    kv: Range<u32>,
    /// The key that query 0 stands at.
    diagonal: i64,
}

impl Call {
    /// The embedding that is asked for, by the tables that are given.
    pub(crate) fn rotary_of(&self, contents: &Contents) -> Option<Rotary> {
        let &[positions, half] = contents.cos.as_ref()?.shape.as_slice() else { return None };
        Some(Rotary::new(self.rotary?, half.saturating_mul(2), positions))
    }

    /// That tables are given exactly where they are asked for, and have every position.
    pub(crate) fn check_positions(&self, problem: &Problem, contents: &Contents) -> Result<()> {
        for (name, table) in [("cos", &contents.cos), ("sin", &contents.sin)] {
            match (self.rotary, table) {
                (None, Some(_)) => return Err(format!("tensor {name} needs --rotary")),
                (Some(_), None) => {
                    return Err(format!("tensor {name} is missing: --rotary needs it"));
                }
                _ => {}
            }
        }
        let (Some(cos), Some(sin)) = (&contents.cos, &contents.sin) else { return Ok(()) };
        let head_dim = problem.shape.head_dim;
        match cos.shape[..] {
            [_, half] if (1..=head_dim / 2).contains(&half) => sin.check_shape(&cos.shape)?,
            _ => {
                let (shape, most) = (&cos.shape, head_dim / 2);
                return Err(format!(
                    "tensor cos has shape {shape:?}, needed is [positions, 1 to {most}]"
                ));
            }
        }
        let positions = i64::from(cos.shape[0]);
        for (b, sequence) in self.sequences(problem, contents).enumerate() {
            let first = self.first_pos(contents, b, &sequence);
            if !sequence.q.is_empty() {
                if first < 0 {
                    return Err(match &contents.diag_offset {
                        Some(offsets) => offsets.wrong(b, "at least 0 with --rotary"),
                        None => {
                            format!("--rotary: query 0 of sequence {b} stands at position {first}")
                        }
                    });
                }
                let last = first + i64::from(sequence.q.end - sequence.q.start) - 1;
                cos.check_position("q", b, last, positions)?;
            }
            // The last new key of a cache stands where the last query does.
            if !matches!(contents.keys, Keys::Cache(_)) {
                let last = i64::from(sequence.kv.end - sequence.kv.start) - 1;
                cos.check_position(contents.k.name, b, last, positions)?;
            }
        }
        Ok(())
    }

    /// Position of query 0 of sequence `b`.
    fn first_pos(&self, contents: &Contents, b: usize, sequence: &Sequence) -> i64 {
        match &contents.keys {
            Keys::Cache(cache) => cache.lens.data[b].into(),
            _ => sequence.diagonal,
        }
    }

    /// The sequences, as long as they are.
    fn sequences(&self, problem: &Problem, contents: &Contents) -> impl Iterator<Item = Sequence> {
        let s = problem.shape;
        (0..s.batch).map(move |b| {
            let at = b as usize;
            let part = |starts: &Option<Tensor<u32>>, lens: &Option<Tensor<u32>>, len: u32| match (
                starts, lens,
            ) {
                (Some(starts), _) => starts.data[at]..starts.data[at + 1],
                (_, Some(lens)) => 0..lens.data[at],
                _ => 0..len,
            };
            let q = part(&contents.cu_seqlens_q, &contents.q_lens, s.q_len);
            let kv = part(&contents.cu_seqlens_k, &contents.kv_lens, s.kv_len);
            let bottom_right = i64::from(kv.end - kv.start) - i64::from(q.end - q.start);
            let diagonal = match (&contents.diag_offset, self.causal) {
                (Some(offsets), _) => offsets.data[at].into(),
                (None, Some(Diagonal::TopLeft)) => 0,
                _ => bottom_right,
            };
            Sequence { outer: if self.axes == Axes::Thd { 0 } else { b }, q, kv, diagonal }
        })
    }

    /// Turns queries, and keys that are in no cache: those of a cache are turned as they are appended.
    pub(crate) fn turn(
        &self,
        problem: &mut Problem,
        contents: &mut Contents,
        machines: &mut Machines,
    ) -> Result<()> {
        let Some(rotary) = self.rotary_of(contents) else { return Ok(()) };
        let [queries, mut keys] = self.rows(problem, contents);
        if let Some(pages) = problem.pages {
            (keys, problem.pages) = contents.own_pages(pages);
        }
        let s = problem.shape;
        let turning = Turning { call: self, rotary, dim: s.head_dim, dtype: problem.dtype };
        let Contents { q, k, keys: kind, cos, sin, .. } = contents;
        let (Some(cos), Some(sin)) = (cos, sin) else { return Ok(()) };
        let tables = [&cos.data[..], &sin.data];
        turning.turn(&mut q.data, (problem.q, s.heads), queries, tables, machines)?;
        if !matches!(kind, Keys::Cache(_)) {
            turning.turn(&mut k.data, (problem.k, s.kv_heads), keys, tables, machines)?;
        }
        Ok(())
    }

    /// Turns gradients of turned queries and keys into those of queries and keys as they were: a rotation's transpose is
    /// that by the opposite angle.
    pub(crate) fn turn_back(
        &self,
        problem: &Problem,
        contents: &Contents,
        [d_q, d_k]: [&mut [f32]; 2],
        machines: &mut Machines,
    ) -> Result<()> {
        let Some(rotary) = self.rotary_of(contents) else { return Ok(()) };
        let (Some(cos), Some(sin)) = (&contents.cos, &contents.sin) else { return Ok(()) };
        let [queries, keys] = self.rows(problem, contents);
        let back: Vec<f32> = sin.data.iter().map(|x| -x).collect();
        let tables = [&cos.data[..], &back];
        let s = problem.shape;
        // They are rounded already.
        let turning = Turning { call: self, rotary, dim: s.head_dim, dtype: DType::F32 };
        turning.turn(d_q, (problem.q, s.heads), queries, tables, machines)?;
        turning.turn(d_k, (problem.k, s.kv_heads), keys, tables, machines)
    }

    /// Rows of q and of k that sequences have, and their positions.
    fn rows(&self, problem: &Problem, contents: &Contents) -> [Vec<Rows>; 2] {
        let (mut queries, mut keys) = (Vec::new(), Vec::new());
        for (b, sequence) in self.sequences(problem, contents).enumerate() {
            let first = self.first_pos(contents, b, &sequence);
            let Sequence { outer, q, kv, .. } = sequence;
            // Of no row, the position may be any.
            let pos = u32::try_from(first).unwrap_or(0);
            queries.push(Rows { outer, rows: q, pos });
            keys.push(Rows { outer, rows: kv, pos: 0 });
        }
        [queries, keys]
    }
}

impl Tensor<f32> {
    /// That tables have a position.
    fn check_position(&self, what: &str, b: usize, last: i64, positions: i64) -> Result<()> {
        if last < positions {
            return Ok(());
        }
        let name = self.name;
        Err(format!(
            "tensor {name} has {positions} positions, {what} of sequence {b} reaches {last}"
        ))
    }
}

impl Contents {
    /// Gives every sequence pages of its own: one that two sequences share may stand at two positions. The rows that are
    /// used, and the pool.
    fn own_pages(&mut self, pages: Pages) -> (Vec<Rows>, Option<Pages>) {
        let (Keys::Pages { block_table }, Some(lens)) = (&mut self.keys, &self.kv_lens) else {
            return (Vec::new(), Some(pages));
        };
        let size =
            |tensor: &Tensor<f32>| tensor.shape[1..].iter().map(|n| *n as usize).product::<usize>();
        let (mut rows, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        let width = block_table.shape[1] as usize;
        for (b, len) in lens.data.iter().enumerate() {
            let row = &mut block_table.data[b * width..][..width];
            for (entry, pos) in row.iter_mut().zip((0..*len).step_by(pages.page_len as usize)) {
                let page = *entry as usize;
                for (own, tensor) in [(&mut k, &self.k), (&mut v, &self.v)] {
                    own.extend_from_slice(&tensor.data[page * size(tensor)..][..size(tensor)]);
                }
                *entry = u32::try_from(rows.len()).expect("entries of a table in memory");
                rows.push(Rows { outer: *entry, rows: 0..pages.page_len.min(len - pos), pos });
            }
        }
        if rows.is_empty() {
            return (rows, Some(pages));
        }
        (self.k.data, self.v.data) = (k, v);
        let count = u32::try_from(rows.len()).expect("entries of a table in memory");
        (rows, Some(Pages::new(count, pages.page_len)))
    }
}

/// How rows are turned.
struct Turning<'a> {
    call: &'a Call,
    rotary: Rotary,
    dim: u32,
    dtype: DType,
}

impl Turning<'_> {
    /// Turns rows of a tensor, those of as many rows together.
    fn turn(
        &self,
        data: &mut [f32],
        (strides, heads): (Strides, u32),
        all: Vec<Rows>,
        [cos, sin]: [&[f32]; 2],
        machines: &mut Machines,
    ) -> Result<()> {
        let Turning { dim, dtype, .. } = *self;
        let mut by_len = BTreeMap::<u32, Vec<Rows>>::new();
        for rows in all.into_iter().filter(|rows| !rows.rows.is_empty()) {
            by_len.entry(rows.rows.end - rows.rows.start).or_default().push(rows);
        }
        for (len, group) in by_len {
            let places: Vec<Range<usize>> = (group.iter())
                .flat_map(|rows| (0..heads).flat_map(move |h| rows.places(strides, h, dim)))
                .collect();
            let x: Vec<f32> =
                places.iter().flat_map(|place| &data[place.clone()]).copied().collect();
            let pos_offsets: Vec<u32> = group.iter().map(|rows| rows.pos).collect();
            let batch = u32::try_from(group.len()).expect("sequences are counted by 32 bits");
            let shape = Shape::cross_attention(batch, heads, len, 1, dim);
            let embedding = RotaryEmbedding::new(self.rotary, shape).dtype(dtype).with_offsets();
            let inputs = RotaryInputs {
                x: &x,
                cos,
                sin,
                pos_offsets: &pos_offsets,
                ..RotaryInputs::default()
            };
            let turned = if self.call.backend == Backend::Reference {
                embedding.validate().map_err(|error| error.to_string())?;
                let exact = reference::rotary_embedding(&embedding, &inputs);
                let mut turned = vec![0.0; exact.len()];
                round_into(&mut turned, &exact);
                turned
            } else {
                let turn =
                    |runner: &wgpu_attention::Runner| runner.rotary_embedding(&embedding, &inputs);
                machines.run(self.call.backend, turn)?
            };
            for (place, row) in places.into_iter().zip(turned.chunks(dim as usize)) {
                data[place].copy_from_slice(row);
            }
        }
        Ok(())
    }
}

impl Rows {
    /// Where the rows of a head lie.
    fn places(
        &self,
        strides: Strides,
        head: u32,
        dim: u32,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let first = u64::from(self.outer) * strides.batch + u64::from(head) * strides.head;
        self.rows.clone().map(move |row| {
            let at = first + u64::from(row) * strides.row;
            let at = usize::try_from(at).expect("within a tensor in memory");
            at..at + dim as usize
        })
    }
}
