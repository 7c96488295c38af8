//! What options and tensors together ask: one problem and its inputs.

use crate::Result;
use crate::keys::Keys;
use crate::options::{Axes, Call};
use crate::tensors::{Contents, Tensor};
use wgpu_attention::{Diagonal, Inputs, Layout, Mask, MaskFormat, Pairs, Problem, Shape, Slopes};

impl Call {
    /// A sound problem, which the tensors fit.
    pub(crate) fn problem(&self, contents: &Contents) -> Result<Problem> {
        self.check_company(contents)?;
        let shape = self.shape(contents)?;
        let mut problem = match self.axes {
            Axes::Bhsd => Problem::new(shape),
            Axes::Bshd => Problem::new(shape).layout(Layout::Bshd),
            Axes::Thd => Problem::packed(shape),
        };
        problem = problem.mask(self.band(contents)).dtype(self.dtype(contents)).with_lse();
        problem.scale = self.scale;
        problem.softcap = self.softcap;
        problem.weights = self.weights;
        problem.scores = self.scores;
        if let Some(pages) = contents.pages() {
            problem = problem.with_pages(pages);
        }
        let problem = self.with_dropout(contents.in_problem(problem)?, contents)?;
        problem.validate().map_err(|error| error.to_string())?;
        self.check_positions(&problem, contents)?;
        Ok(problem)
    }

    /// Some tensors are for packed sequences alone, some for others.
    fn check_company(&self, contents: &Contents) -> Result<()> {
        contents.check_keys(self.axes)?;
        let packed = self.axes == Axes::Thd;
        for (name, given) in [
            ("cu_seqlens_q", contents.cu_seqlens_q.is_some()),
            ("cu_seqlens_k", contents.cu_seqlens_k.is_some()),
        ] {
            match (packed, given) {
                (true, false) => return Err(format!("tensor {name} is missing: thd needs it")),
                (false, true) => return Err(format!("tensor {name} is for --layout thd alone")),
                _ => {}
            }
        }
        for (name, given) in [
            ("mask", contents.mask.is_some()),
            ("bias", contents.bias.is_some()),
            ("keep", contents.keep.is_some()),
            ("q_lens", contents.q_lens.is_some()),
            ("kv_lens", contents.kv_lens.is_some()),
        ] {
            if packed && given {
                return Err(format!("tensor {name} does not go with --layout thd"));
            }
        }
        Ok(())
    }

    /// The problem with its dropout: by random numbers of a seed, which nothing needs where none is dropped, or by a
    /// given mask.
    fn with_dropout(&self, problem: Problem, contents: &Contents) -> Result<Problem> {
        let Shape { batch, heads, q_len, kv_len, .. } = problem.shape;
        match (self.dropout, &contents.keep) {
            (None, None) => Ok(problem),
            (None, Some(_)) => Err("tensor keep needs --dropout".to_owned()),
            (Some(p), None) if self.seed.is_none() && p != 0.0 => {
                Err("--dropout needs --seed, or tensor keep".to_owned())
            }
            (Some(p), None) => Ok(problem.with_dropout(p)),
            (Some(_), Some(_)) if self.seed.is_some() => {
                Err("--seed does not go with tensor keep".to_owned())
            }
            (Some(p), Some(keep)) => {
                if let Some(fused) = self.fused() {
                    return Err(format!("tensor keep: --algorithm {fused} does not read it"));
                }
                keep.check_shape(&[batch, heads, q_len, kv_len])?;
                Ok(problem.with_given_dropout(p))
            }
        }
    }

    fn shape(&self, contents: &Contents) -> Result<Shape> {
        let Contents { q, k, v, .. } = contents;
        let sequences = match &contents.cu_seqlens_q {
            Some(starts) => starts.sequences()?,
            None => 0,
        };
        let [batch, heads, q_len, head_dim] = self.axes_of(q, sequences)?;
        let of_keys = |tensor| match &contents.keys {
            Keys::Pages { block_table } => block_table.axes_of(tensor, batch),
            _ => self.axes_of(tensor, sequences),
        };
        let [k_batch, kv_heads, kv_len, k_dim] = of_keys(k)?;
        let [v_batch, v_heads, v_len, v_head_dim] = of_keys(v)?;
        for (what, tensor, found, needed) in [
            ("batch", k.name, k_batch, batch),
            ("batch", v.name, v_batch, batch),
            ("heads", v.name, v_heads, kv_heads),
            ("length", v.name, v_len, kv_len),
            ("head_dim", k.name, k_dim, head_dim),
        ] {
            if found != needed {
                return Err(format!("tensor {tensor}: {what} is {found}, needed is {needed}"));
            }
        }
        if let Keys::Cache(cache) = &contents.keys {
            cache.check([batch, q_len, kv_heads], [head_dim, v_head_dim], kv_len)?;
        }
        Ok(Shape::cross_attention(batch, heads, q_len, kv_len, head_dim)
            .with_kv_heads(kv_heads)
            .with_v_head_dim(v_head_dim))
    }

    /// `[batch, heads, len, dim]`, whatever the layout; the tokens of all `sequences` together are their length.
    fn axes_of(&self, tensor: &Tensor<f32>, sequences: u32) -> Result<[u32; 4]> {
        match (self.axes, tensor.shape.as_slice()) {
            (Axes::Bhsd, &[batch, heads, len, dim]) => Ok([batch, heads, len, dim]),
            (Axes::Bshd, &[batch, len, heads, dim]) => Ok([batch, heads, len, dim]),
            (Axes::Thd, &[tokens, heads, dim]) => Ok([sequences, heads, tokens, dim]),
            (axes, shape) => {
                let needed = if axes == Axes::Thd { 3 } else { 4 };
                let name = tensor.name;
                Err(format!("tensor {name} has shape {shape:?}, needed are {needed} axes"))
            }
        }
    }

    fn band(&self, contents: &Contents) -> Mask {
        let right = self.causal.map_or(self.window_right, |_| Some(0));
        let mask = Mask::band(self.window_left, right);
        match &contents.diag_offset {
            Some(_) => mask.along(Diagonal::PerSequence),
            None => mask.along(self.causal.unwrap_or_default()),
        }
    }
}

impl Contents {
    /// The problem with what the tensors besides q, k and v ask of it.
    fn in_problem(&self, mut problem: Problem) -> Result<Problem> {
        let Shape { batch, heads, q_len, kv_len, .. } = problem.shape;
        if let Some(mask) = &self.mask {
            problem = problem.with_boolean_mask(MaskFormat::Bytes, mask.pairs()?);
        }
        if let Some(bias) = &self.bias {
            problem = problem.with_bias(bias.storage(), bias.pairs()?);
        }
        if let Some(slopes) = &self.alibi_slopes {
            problem = if slopes.shape.len() == 2 {
                slopes.check_shape(&[batch, heads])?;
                problem.with_alibi(Slopes::PerSequence)
            } else {
                slopes.check_shape(&[heads])?;
                problem.with_alibi(Slopes::PerHead)
            };
        }
        if let Some(sinks) = &self.sinks {
            sinks.check_shape(&[heads])?;
            problem = problem.with_sinks();
        }
        if let Some(offsets) = &self.diag_offset {
            offsets.check_shape(&[batch])?;
        }
        for (lens, max) in [(&self.q_lens, q_len), (&self.kv_lens, kv_len)] {
            if let Some(lens) = lens {
                lens.check_shape(&[batch])?;
                lens.check_lengths(max)?;
            }
        }
        self.check_table(&problem)?;
        for (starts, total) in [(&self.cu_seqlens_q, q_len), (&self.cu_seqlens_k, kv_len)] {
            if let Some(starts) = starts {
                starts.check_starts(batch, total)?;
            }
        }
        if self.q_lens.is_some() || self.kv_lens.is_some() {
            problem = problem.with_lengths(self.q_lens.is_some(), self.kv_lens.is_some());
        }
        Ok(problem)
    }

    /// What is given, for a problem of it.
    pub(crate) fn inputs(&self) -> Inputs<'_> {
        fn data<T>(tensor: &Option<Tensor<T>>) -> &[T] {
            tensor.as_ref().map_or(&[], |tensor| &tensor.data)
        }
        Inputs::new(&self.q.data, &self.k.data, &self.v.data)
            .mask(data(&self.mask))
            .bias(data(&self.bias))
            .alibi_slopes(data(&self.alibi_slopes))
            .sinks(data(&self.sinks))
            .diag_offsets(data(&self.diag_offset))
            .q_lens(data(&self.q_lens))
            .kv_lens(data(&self.kv_lens))
            .cu_seqlens_q(data(&self.cu_seqlens_q))
            .cu_seqlens_k(data(&self.cu_seqlens_k))
            .block_table(self.keys.block_table())
            .keep(data(&self.keep))
    }
}

impl<T> Tensor<T> {
    /// A value a pair; the problem says which extents are right.
    fn pairs(&self) -> Result<Pairs> {
        let axes = self.shape.as_slice().try_into();
        axes.map(Pairs::new).map_err(|_| {
            format!("tensor {} has shape {:?}, needed are 4 axes", self.name, self.shape)
        })
    }
}

impl Tensor<u32> {
    /// How many sequences the entries start and end.
    fn sequences(&self) -> Result<u32> {
        let count = match self.shape.as_slice() {
            [entries] => entries.checked_sub(1),
            _ => None,
        };
        let (name, shape) = (self.name, &self.shape);
        count.ok_or_else(|| format!("tensor {name} has shape {shape:?}, needed is [batch + 1]"))
    }

    fn check_lengths(&self, max: u32) -> Result<()> {
        match self.data.iter().position(|len| *len > max) {
            Some(index) => Err(self.wrong(index, &format!("at most {max}"))),
            None => Ok(()),
        }
    }

    /// From 0, never back, to the total.
    fn check_starts(&self, sequences: u32, total: u32) -> Result<()> {
        if self.sequences()? != sequences {
            return self.check_shape(&[sequences + 1]);
        }
        if self.data[0] != 0 {
            return Err(self.wrong(0, "0"));
        }
        if let Some(index) = self.data.windows(2).position(|pair| pair[0] > pair[1]) {
            let before = self.data[index];
            return Err(self.wrong(index + 1, &format!("at least {before}")));
        }
        let last = self.data.len() - 1;
        if self.data[last] != total {
            return Err(self.wrong(last, &format!("{total}, all tokens")));
        }
        Ok(())
    }
}
