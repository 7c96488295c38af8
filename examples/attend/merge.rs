//! Partial results into one.

use crate::Result;
use crate::answer::{Machines, round_into, sizes};
use crate::options::{Axes, Backend, Call};
use crate::tensors::{Parts, round, write};
use wgpu_attention::{Algorithm, Merge, Shape, Strides, reference};

impl Call {
    /// `out_parts` `[L, n, H, D]` and `lse_parts` `[L, n, H]` to `out` `[L, H, D]` and `lse` `[L, H]`.
    pub(crate) fn merge(
        &self,
        mut parts: Parts,
        output: &str,
        machines: &mut Machines,
    ) -> Result<()> {
        self.check_merge()?;
        let [len, n, heads, dim] = parts.extents()?;
        // A row a batch entry, so that its heads' lse lie side by side.
        let shape = Shape::cross_attention(len, heads, 1, 0, dim);
        let row = u64::from(heads) * u64::from(dim);
        let strides =
            |row: u64, head: u64| Strides { batch: u64::from(n).saturating_mul(row), head, row: 0 };
        let merge = Merge::new(n, shape)
            .out_parts_strides(row, strides(row, dim.into()))
            .lse_parts_strides(heads.into(), strides(heads.into(), 1))
            .dtype(self.dtype.unwrap_or_default())
            .with_lse();
        merge.validate().map_err(|error| error.to_string())?;
        round(&mut parts.out_parts.data, merge.parts_dtype);
        let (out_parts, lse_parts) = (&parts.out_parts.data, &parts.lse_parts.data);
        let (out, lse) = if self.backend == Backend::Reference {
            let merged = reference::merge(&merge, out_parts, lse_parts);
            let [out, lse] = [merged.out, merged.lse].map(|exact| {
                let mut data = vec![0.0; exact.len()];
                round_into(&mut data, &exact);
                data
            });
            (out, lse)
        } else {
            let merged =
                machines.run(self.backend, |runner| runner.merge(&merge, out_parts, lse_parts))?;
            (merged.out, merged.lse.unwrap_or_default())
        };
        write(
            output,
            &[("out", sizes(&[len, heads, dim]), out), ("lse", sizes(&[len, heads]), lse)],
        )
    }

    /// Options that ask something of attention ask nothing of a merge.
    fn check_merge(&self) -> Result<()> {
        for (option, given) in [
            ("--layout", self.axes != Axes::Bhsd),
            ("--causal", self.causal.is_some()),
            ("--window-left", self.window_left.is_some()),
            ("--window-right", self.window_right.is_some()),
            ("--scale", self.scale.is_some()),
            ("--softcap", self.softcap.is_some()),
            ("--dropout", self.dropout.is_some()),
            ("--rotary", self.rotary.is_some()),
            ("--algorithm", self.algorithm != Algorithm::Auto),
            ("--weights", self.weights),
            ("--scores", self.scores.is_some()),
        ] {
            if given {
                return Err(format!("{option} does not go with tensor out_parts"));
            }
        }
        Ok(())
    }
}

impl Parts {
    /// `[L, n, H, D]`.
    fn extents(&self) -> Result<[u32; 4]> {
        let shape = &self.out_parts.shape;
        let &[len, n, heads, dim] = shape.as_slice() else {
            return Err(format!("tensor out_parts has shape {shape:?}, needed are 4 axes"));
        };
        self.lse_parts.check_shape(&[len, n, heads])?;
        Ok([len, n, heads, dim])
    }
}
