//! A cache that grows by new rows before attention.

use crate::Result;
use crate::answer::{Machines, round_into, sizes};
use crate::keys::Keys;
use crate::options::{Backend, Call};
use crate::tensors::{Contents, Tensor, Written};
use wgpu_attention::{Append, AppendInputs, Problem, Strides, reference};

/// What is appended to a cache, and where.
pub(crate) struct Cache {
    /// `cache_lens` `[B]`: positions that are taken.
    pub(crate) lens: Tensor<u32>,
    /// `[B, L, Hkv, D]`.
    pub(crate) k_new: Tensor<f32>,
    /// `[B, L, Hkv, DV]`.
    pub(crate) v_new: Tensor<f32>,
}

impl Cache {
    /// Rows that every sequence gets.
    fn new_len(&self) -> u32 {
        self.k_new.shape.get(1).copied().unwrap_or(0)
    }

    /// Positions that are taken afterwards.
    pub(crate) fn lens_after(&self) -> Tensor<u32> {
        let Tensor { name, ref shape, dtype, ref data } = self.lens;
        let data = data.iter().map(|len| len.saturating_add(self.new_len())).collect();
        Tensor { name, shape: shape.clone(), dtype, data }
    }

    /// That the new rows are as those of the cache, and have room.
    pub(crate) fn check(
        &self,
        [batch, new_len, kv_heads]: [u32; 3],
        [head_dim, v_head_dim]: [u32; 2],
        capacity: u32,
    ) -> Result<()> {
        self.k_new.check_shape(&[batch, new_len, kv_heads, head_dim])?;
        self.v_new.check_shape(&[batch, new_len, kv_heads, v_head_dim])?;
        self.lens.check_shape(&[batch])?;
        let room = capacity.checked_sub(new_len);
        for (index, len) in self.lens.data.iter().enumerate() {
            if room.is_none_or(|room| *len > room) {
                let needed = format!("room for {new_len} more in a cache of {capacity}");
                return Err(self.lens.wrong(index, &needed));
            }
        }
        Ok(())
    }
}

impl Contents {
    /// The cache, as it is written back.
    pub(crate) fn cache(self) -> Vec<Written> {
        if !matches!(self.keys, Keys::Cache(_)) {
            return Vec::new();
        }
        let caches = [self.k, self.v];
        caches.into_iter().map(|tensor| (tensor.name, sizes(&tensor.shape), tensor.data)).collect()
    }
}

impl Call {
    /// Appends the new rows of keys, turned where that is asked for, and of values.
    pub(crate) fn append(
        &self,
        problem: &Problem,
        contents: &mut Contents,
        machines: &mut Machines,
    ) -> Result<()> {
        let rotary = self.rotary_of(contents);
        let Contents { k, v, keys: Keys::Cache(cache), cos, sin, .. } = contents else {
            return Ok(());
        };
        let s = problem.shape;
        if s.batch == 0 || s.q_len == 0 {
            return Ok(());
        }
        let rows = |dim| Strides::bshd(s.kv_heads, s.q_len, dim);
        let mut append = Append::to_cache_of(problem)
            .dtype(problem.dtype)
            .new_strides(rows(s.head_dim), rows(s.v_head_dim));
        let mut inputs = AppendInputs {
            k_new: &cache.k_new.data,
            v_new: &cache.v_new.data,
            k: &k.data,
            v: &v.data,
            kv_lens: &cache.lens.data,
            ..AppendInputs::default()
        };
        if let (Some(rotary), Some(cos), Some(sin)) = (rotary, cos, sin) {
            append = append.with_rotary(rotary);
            (inputs.cos, inputs.sin) = (&cos.data, &sin.data);
        }
        if self.backend == Backend::Reference {
            let appended = reference::append(&append, &inputs);
            round_into(&mut k.data, &appended.k);
            round_into(&mut v.data, &appended.v);
        } else {
            let appended = machines.run(self.backend, |runner| runner.append(&append, &inputs))?;
            (k.data, v.data) = (appended.k, appended.v);
        }
        Ok(())
    }
}
