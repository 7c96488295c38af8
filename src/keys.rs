//! What a tuned choice holds for: a kind of problem on a kind of device.

use crate::device::Capabilities;
use crate::forward::{Views, excludes};
use crate::kernels::{Element, Features, Rows};
use crate::pipeline::Checks;
use crate::problem::Problem;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write as _};

/// What of a device decides which kernel is fastest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceKey {
    /// Of this crate: kernels change with it.
    version: String,
    adapter: String,
    driver: String,
    driver_info: String,
    backend: String,
    class: String,
    checks: bool,
    /// Everything else that the planner looks at, as a number.
    capabilities: String,
}

impl DeviceKey {
    pub(crate) fn of(
        info: &wgpu::AdapterInfo,
        capabilities: &Capabilities,
        checks: Checks,
    ) -> Self {
        let limits = &capabilities.limits;
        // The others decide whether a problem is cut into parts, not by which kernel it is solved.
        let looked_at = Capabilities {
            limits: wgpu::Limits {
                max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size,
                max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
                max_storage_buffers_per_shader_stage: limits.max_storage_buffers_per_shader_stage,
                ..wgpu::Limits::default()
            },
            ..capabilities.clone()
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            adapter: info.name.clone(),
            driver: info.driver.clone(),
            driver_info: info.driver_info.clone(),
            backend: info.backend.to_string(),
            class: format!("{:?}", capabilities.class),
            checks: checks == Checks::On,
            capabilities: fingerprint(&format!("{looked_at:?}")),
        }
    }
}

/// Adapter, driver and version in a few words.
impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, adapter, driver, driver_info, backend, class, .. } = self;
        write!(f, "{adapter} ({driver} {driver_info}, {backend}), {class}, version {version}")
    }
}

/// What of a problem changes the kernels, and how large it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProblemKey {
    q: String,
    kv: String,
    out: String,
    head_dim: u32,
    v_head_dim: u32,
    group_size: u32,
    /// Rounded up to powers of two. Neither batch nor heads: what is invariant to the batch stays so.
    q_len: u32,
    kv_len: u32,
    /// How a kernel knows what a row sees: full, band, sequences or packed.
    mask: String,
    /// Of q, k, v and out: whether four elements are read at a time.
    aligned: [bool; 4],
    features: Vec<String>,
}

impl ProblemKey {
    pub(crate) fn of(problem: &Problem, capabilities: &Capabilities) -> Self {
        // Exhaustive: a feature that is new here has to find its place in the key.
        let Features {
            q,
            kv,
            out,
            rows,
            page_len,
            softcap,
            alibi,
            sinks,
            mask,
            bias,
            score,
            derivative: _,
            visible,
            buffers,
            classes: _,
            lse,
            sums: _,
            scores,
            dropout,
        } = Features::of(problem, capabilities, excludes(problem));
        let mut features = Vec::new();
        let mut add = |asked: bool, name: &str| {
            if asked {
                features.push(name.to_owned());
            }
        };
        add(softcap, "softcap");
        add(alibi, "alibi");
        add(sinks, "sinks");
        add(lse, "lse");
        add(page_len.is_some(), &format!("pages of {page_len:?}"));
        add(problem.weights, "weights");
        add(problem.needs_rows_alone(), "rows alone");
        add(mask.is_some(), &format!("mask {mask:?}"));
        add(bias.is_some(), &format!("bias {bias:?}"));
        add(scores.is_some(), &format!("scores {scores:?}"));
        add(dropout.is_some(), &format!("dropout {dropout:?}"));
        for (text, name) in [(score, "score function"), (visible, "mask function")] {
            let Some(text) = text else { continue };
            let unchecked = if text.unchecked { " unchecked" } else { "" };
            features.push(format!("{name} {}{unchecked}", fingerprint(&text.wgsl)));
        }
        features.extend(buffers.iter().map(|(name, element)| format!("buffer {name} {element}")));
        let element = |element| match element {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::PackedF16 => "packed f16",
            Element::PackedBf16 => "packed bf16",
            Element::Q8 => "q8",
            Element::Q4 => "q4",
        };
        let mask = match rows {
            Rows::Full => "full",
            Rows::Band => "band",
            Rows::Sequences => "sequences",
            Rows::Packed => "packed",
        };
        let shape = problem.shape;
        let views = Views::of(problem);
        Self {
            q: element(q).to_owned(),
            kv: element(kv).to_owned(),
            out: element(out).to_owned(),
            head_dim: shape.head_dim,
            v_head_dim: shape.v_head_dim,
            group_size: shape.group_size(),
            q_len: shape.q_len.next_power_of_two(),
            kv_len: shape.kv_len.next_power_of_two(),
            mask: mask.to_owned(),
            aligned: [views.q, views.k, views.v, views.out].map(|view| view.is_vec4()),
            features,
        }
    }
}

/// Types, sizes, mask and features in a few words.
impl fmt::Display for ProblemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { q, kv, out, head_dim, v_head_dim, group_size, q_len, kv_len, mask, .. } = self;
        write!(f, "{q_len} x {kv_len}, {head_dim} and {v_head_dim} wide, {q} {kv} {out}, {mask}")?;
        if *group_size != 1 {
            write!(f, ", groups of {group_size}")?;
        }
        self.features.iter().try_for_each(|feature| write!(f, ", {feature}"))
    }
}

/// FNV-1a, 64 bits: the same on every machine and in every version of Rust.
fn fingerprint(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut hex = String::new();
    let _ = write!(hex, "{hash:016x}");
    hex
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceClass;
    use crate::function::ScoreFunction;
    use crate::mask::Mask;
    use crate::shape::{DType, Shape};

    fn info(driver_info: &str) -> wgpu::AdapterInfo {
        let (device, _queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        wgpu::AdapterInfo { driver_info: driver_info.to_owned(), ..device.adapter_info() }
    }

    #[test]
    fn what_changes_a_kernel_changes_its_key() {
        let capabilities = Capabilities::portable();
        let key = |problem: &Problem| ProblemKey::of(problem, &capabilities);
        let shape = Shape::self_attention(2, 8, 1000, 64);
        let plain = Problem::new(shape);
        // Batch and heads do not; nor do lengths of about the same size.
        for alike in [
            Problem::new(Shape::self_attention(5, 8, 1000, 64)),
            Problem::new(Shape::self_attention(2, 3, 1000, 64)),
            Problem::new(Shape::self_attention(2, 8, 513, 64)),
            plain.clone().scale(3.0),
            plain.clone().with_dropout(0.0),
        ] {
            assert_eq!(key(&plain), key(&alike), "{alike:?}");
        }
        let double = |text| ScoreFunction::new("double", text, |s, _| 2.0 * s);
        let text =
            "fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 { return s; }";
        let other = text.replace("return s", "return s + s");
        let odd = crate::layout::Strides { batch: 0, head: 0, row: 65 };
        let different = [
            plain.clone(),
            Problem::new(Shape::self_attention(2, 8, 512, 64)),
            Problem::new(Shape::self_attention(2, 8, 1000, 128)),
            Problem::new(shape.with_v_head_dim(32)),
            Problem::new(shape.with_kv_heads(2)),
            plain.clone().mask(Mask::CAUSAL),
            plain.clone().with_lengths(false, true),
            plain.clone().dtype(DType::F16),
            plain.clone().kv_dtype(DType::BF16),
            plain.clone().out_dtype(DType::F16),
            plain.clone().q_strides(odd),
            plain.clone().softcap(3.0),
            plain.clone().with_lse(),
            plain.clone().with_weights(),
            plain.clone().with_sinks(),
            plain.clone().with_dropout(0.5),
            plain.clone().with_given_dropout(0.5),
            plain.clone().with_score_function(double(text)),
            plain.clone().with_score_function(double(&other)),
        ];
        for (i, a) in different.iter().enumerate() {
            for b in &different[..i] {
                assert_ne!(key(a), key(b), "{a:?}\n{b:?}");
            }
        }
    }

    #[test]
    fn what_changes_a_device_changes_its_key() {
        let portable = Capabilities::portable();
        let key = |driver_info, capabilities: &Capabilities, checks| {
            DeviceKey::of(&info(driver_info), capabilities, checks)
        };
        let mut less = portable.clone();
        less.limits.max_compute_workgroup_storage_size /= 2;
        let mut without_textures = portable.clone();
        without_textures.limits.max_texture_dimension_2d = 0;
        let plain = key("1.0", &portable, Checks::Off);
        assert_eq!(plain, key("1.0", &without_textures, Checks::Off));
        for other in [
            key("1.1", &portable, Checks::Off),
            key("1.0", &portable, Checks::On),
            key("1.0", &less, Checks::Off),
            key("1.0", &portable.clone().with_f16(true), Checks::Off),
            key("1.0", &portable.with_class(DeviceClass::Software), Checks::Off),
        ] {
            assert_ne!(plain, other);
        }
    }
}
