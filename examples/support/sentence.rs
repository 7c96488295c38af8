//! One layer of a trained model and one sentence: `data/sentence.safetensors`, described in `data/SOURCE.md`.

use safetensors::{Dtype, SafeTensors};
use std::error::Error;
use std::path::Path;
use wgpu_attention::{LayerInputs, SelfAttention};

/// The layer, its input, and the answers that were computed in f64.
pub(crate) struct Sentence {
    pub(crate) tokens: Vec<String>,
    pub(crate) heads: usize,
    pub(crate) layer: SelfAttention,
    /// `[len, model_dim]`.
    pub(crate) expected_output: Vec<f32>,
    /// `[heads, len, len]`.
    pub(crate) expected_weights: Vec<f32>,
    x: Vec<f32>,
    /// Those of q, k, v and o.
    matrices: [Vec<f32>; 4],
    biases: [Vec<f32>; 4],
}

impl Sentence {
    pub(crate) fn load() -> Result<Self, Box<dyn Error>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/sentence.safetensors");
        let bytes = std::fs::read(&path).map_err(|error| {
            format!(
                "{}: {error} (the file is in the repository, not in the package)",
                path.display()
            )
        })?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let facts = header.metadata().as_ref().ok_or("the file has no metadata")?;
        let fact = |name: &str| facts.get(name).ok_or_else(|| format!("no metadata {name:?}"));
        let tokens = words(fact("tokens")?);
        let heads: u32 = fact("heads")?.parse()?;

        let file = SafeTensors::deserialize(&bytes)?;
        let x = floats(&file, "x")?;
        let len = u32::try_from(tokens.len())?;
        let model_dim = u32::try_from(x.len() / tokens.len())?;
        Ok(Self {
            layer: SelfAttention::new(1, len, model_dim, heads)?.with_biases(),
            tokens,
            heads: heads as usize,
            expected_output: floats(&file, "expected_output")?,
            expected_weights: floats(&file, "expected_weights")?,
            x,
            matrices: four(&file, ["w_q", "w_k", "w_v", "w_o"])?,
            biases: four(&file, ["b_q", "b_k", "b_v", "b_o"])?,
        })
    }

    pub(crate) fn inputs(&self) -> LayerInputs<'_> {
        let [w_q, w_k, w_v, w_o] = &self.matrices;
        let [b_q, b_k, b_v, b_o] = &self.biases;
        LayerInputs { x: &self.x, w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, ..Default::default() }
    }

    /// One head of `weights`, `[len, len]`.
    pub(crate) fn head<'a>(&self, weights: &'a [f32], head: usize) -> &'a [f32] {
        let area = self.tokens.len() * self.tokens.len();
        &weights[head * area..][..area]
    }
}

fn four(file: &SafeTensors<'_>, names: [&str; 4]) -> Result<[Vec<f32>; 4], Box<dyn Error>> {
    let [q, k, v, o] = names;
    Ok([floats(file, q)?, floats(file, k)?, floats(file, v)?, floats(file, o)?])
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let tensor = file.tensor(name)?;
    match tensor.dtype() {
        Dtype::F32 => Ok(bytemuck::pod_collect_to_vec(tensor.data())),
        Dtype::F16 => {
            let halves: Vec<half::f16> = bytemuck::pod_collect_to_vec(tensor.data());
            Ok(halves.into_iter().map(half::f16::to_f32).collect())
        }
        other => Err(format!("{name} is {other:?}, neither F32 nor F16").into()),
    }
}

/// The strings of a JSON array that has no escapes.
fn words(json: &str) -> Vec<String> {
    json.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}
