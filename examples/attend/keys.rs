//! Where keys and values are: in tensors of their own, in pages of a pool, or in a cache that grows first.

use crate::Result;
use crate::cache::Cache;
use crate::options::Axes;
use crate::tensors::{Contents, FLOATS, Tensor, float_values, integer_values};
use safetensors::{Dtype, SafeTensors};
use wgpu_attention::{Pages, Problem};

/// What an input file has in the place of `k` and `v`.
pub(crate) enum Keys {
    /// `k` and `v`.
    Whole,
    /// `k_pages` `[P, page, Hkv, D]`, `v_pages` `[P, page, Hkv, DV]`.
    Pages {
        /// `[B, pages]`; `u32::MAX` is none.
        block_table: Tensor<u32>,
    },
    /// `k_cache` `[B, cap, Hkv, D]`, `v_cache` `[B, cap, Hkv, DV]`.
    Cache(Cache),
}

const WHOLE: &[&str] = &["k", "v"];
const PAGES: &[&str] = &["k_pages", "v_pages", "block_table"];
const CACHE: &[&str] = &["k_cache", "v_cache", "cache_lens", "k_new", "v_new"];

impl Keys {
    /// Whether a tensor of this name has to do with it.
    pub(crate) fn has(name: &str) -> bool {
        [WHOLE, PAGES, CACHE].iter().any(|names| names.contains(&name))
    }

    /// Keys and values, and what else there is of the kind that the file has.
    pub(crate) fn read(
        file: &SafeTensors<'_>,
        names: &[&str],
    ) -> Result<(Tensor<f32>, Tensor<f32>, Self)> {
        let given = |kind: &[&str]| names.iter().any(|name| kind.contains(name));
        let kind = [PAGES, CACHE].into_iter().find(|kind| given(kind)).unwrap_or(WHOLE);
        for name in names {
            if Self::has(name) && !kind.contains(name) {
                return Err(format!("tensor {name} does not go with tensor {}", kind[0]));
            }
        }
        let floats = |name| Tensor::needed(file, name, &FLOATS, float_values);
        let integers = |name| Tensor::needed(file, name, &[Dtype::I32], integer_values);
        let keys = if kind == PAGES {
            Self::Pages { block_table: integers("block_table")?.pages() }
        } else if kind == CACHE {
            let lens = integers("cache_lens")?.counts()?;
            Self::Cache(Cache { lens, k_new: floats("k_new")?, v_new: floats("v_new")? })
        } else {
            Self::Whole
        };
        let [k, v] = match keys {
            Self::Whole => ["k", "v"],
            Self::Pages { .. } => ["k_pages", "v_pages"],
            Self::Cache(_) => ["k_cache", "v_cache"],
        };
        Ok((floats(k)?, floats(v)?, keys))
    }

    /// Lengths of keys: those given, or those of a cache after its new rows.
    pub(crate) fn lens(&self, given: Option<Tensor<u32>>) -> Result<Option<Tensor<u32>>> {
        match (self, given) {
            (Self::Cache(_), Some(_)) => {
                Err("tensor kv_lens does not go with tensor k_cache".to_owned())
            }
            (Self::Cache(cache), None) => Ok(Some(cache.lens_after())),
            (Self::Pages { .. }, None) => {
                Err("tensor kv_lens is missing: pages need it".to_owned())
            }
            (_, given) => Ok(given),
        }
    }

    /// Which page holds which positions; empty where there are none.
    pub(crate) fn block_table(&self) -> &[u32] {
        match self {
            Self::Pages { block_table } => &block_table.data,
            _ => &[],
        }
    }
}

impl Contents {
    /// That the layout, and other tensors, go with the kind of keys.
    pub(crate) fn check_keys(&self, axes: Axes) -> Result<()> {
        let k = self.k.name;
        match self.keys {
            Keys::Pages { .. } if axes == Axes::Thd => {
                Err(format!("tensor {k} does not go with --layout thd"))
            }
            Keys::Cache(_) if axes != Axes::Bshd => {
                Err(format!("tensor {k} is for --layout bshd alone"))
            }
            Keys::Cache(_) if self.q_lens.is_some() => {
                Err(format!("tensor q_lens does not go with tensor {k}"))
            }
            _ => Ok(()),
        }
    }

    /// The pool that keys and values lie in.
    pub(crate) fn pages(&self) -> Option<Pages> {
        match self.keys {
            Keys::Pages { .. } => Some(Pages::new(self.k.shape[0], self.k.shape[1])),
            _ => None,
        }
    }

    /// That keys and values have the same pages, and positions within a sequence's length one of them.
    pub(crate) fn check_table(&self, problem: &Problem) -> Result<()> {
        let (Keys::Pages { block_table }, Some(pages), Some(lens)) =
            (&self.keys, problem.pages, &self.kv_lens)
        else {
            return Ok(());
        };
        if self.v.shape[..2] != self.k.shape[..2] {
            let Pages { pages, page_len, .. } = pages;
            let (name, shape) = (self.v.name, &self.v.shape);
            return Err(format!(
                "tensor {name} has shape {shape:?}, needed are {pages} pages of {page_len} positions"
            ));
        }
        for (b, len) in lens.data.iter().enumerate() {
            let row = block_table.row(b);
            for (i, page) in row.iter().take(pages.table_len(*len) as usize).enumerate() {
                if *page >= pages.pages {
                    return Err(format!(
                        "tensor block_table: entry [{b}, {i}] is {}, needed is a page below {}",
                        page.cast_signed(),
                        pages.pages
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Tensor<i32> {
    /// Page numbers; one below 0 is larger than any that a pool has.
    fn pages(self) -> Tensor<u32> {
        let data = self.data.iter().map(|page| page.cast_unsigned()).collect();
        Tensor { name: self.name, shape: self.shape, dtype: self.dtype, data }
    }
}

impl Tensor<u32> {
    /// The entries of sequence `b`, of a block table.
    pub(crate) fn row(&self, b: usize) -> &[u32] {
        let width = self.shape[1] as usize;
        &self.data[b * width..][..width]
    }

    /// `[batch, heads, len, dim]` of the sequences whose block table this is, in `tensor`'s pages.
    pub(crate) fn axes_of(&self, tensor: &Tensor<f32>, batch: u32) -> Result<[u32; 4]> {
        let name = tensor.name;
        let &[_, page_len, heads, dim] = tensor.shape.as_slice() else {
            return Err(format!("tensor {name} has shape {:?}, needed are 4 axes", tensor.shape));
        };
        if page_len == 0 {
            return Err(format!("tensor {name}: a page of 0 positions"));
        }
        let &[sequences, entries] = self.shape.as_slice() else {
            let (name, shape) = (self.name, &self.shape);
            return Err(format!("tensor {name} has shape {shape:?}, needed are 2 axes"));
        };
        if sequences != batch {
            self.check_shape(&[batch, entries])?;
        }
        let len = entries.checked_mul(page_len);
        let len = len.ok_or_else(|| {
            format!("tensor block_table: {entries} pages of {page_len} positions are too many")
        })?;
        Ok([sequences, heads, len, dim])
    }
}
