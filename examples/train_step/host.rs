//! The model on the CPU path, where there is no GPU: the same steps on tensors in host memory.

use crate::task::{
    BATCH, DIM, HEAD_AT, KEY_AT, LEN, NO_VALUE, PARAMETERS, Point, RATE, Sample, VALUE_AT, VALUES,
    W_O_AT, W_QKV_AT, layer, parameters,
};
use wgpu_attention::{Algorithm, Error, LayerBackwardInputs, LayerInputs, Runner};

pub(crate) struct Model {
    runner: Runner,
    attends: bool,
    seed: u32,
    steps: u32,
    parameters: Vec<f32>,
    /// Of every parameter: means of its gradient and of that squared.
    moments: Vec<[f32; 2]>,
    pub(crate) history: Vec<Point>,
}

/// What came of the last tokens of all sequences.
struct Answers {
    point: Point,
    /// Gradients of the head.
    d_head: Vec<f32>,
    /// Gradients of what the head reads, `[BATCH, LEN, DIM]`: 0 but of last tokens.
    d_h: Vec<f32>,
}

impl Model {
    pub(crate) fn new(seed: u32, attends: bool) -> Self {
        Self {
            runner: Runner::cpu(),
            attends,
            seed,
            steps: 0,
            parameters: parameters(seed),
            moments: vec![[0.0; 2]; PARAMETERS],
            history: Vec::new(),
        }
    }

    /// One step. `learns`: else only answers.
    pub(crate) fn step(&mut self, learns: bool) -> Result<(), Error> {
        let sample = Sample::of_step(self.seed, self.steps);
        let x = self.embed(&sample);
        let inputs = self.layer_inputs(&x);
        let mut attended = vec![0.0; x.len()];
        let mut saved = Vec::new();
        if self.attends {
            let outputs = self.runner.layer(&layer(), Algorithm::Auto, &inputs)?;
            (attended, saved) = (outputs.out, outputs.saved.unwrap_or_default());
        }
        let answers = self.answer(&sample, &x, &attended);
        if learns {
            let mut gradients = vec![0.0; PARAMETERS];
            gradients[HEAD_AT..].copy_from_slice(&answers.d_head);
            let mut d_x = answers.d_h.clone();
            if self.attends {
                let given = LayerBackwardInputs { d_out: &answers.d_h, saved: &saved };
                let of_layer = self.runner.layer_backward(&layer().backward(), &inputs, &given)?;
                gradients[W_QKV_AT..W_O_AT].copy_from_slice(&of_layer.w_qkv);
                gradients[W_O_AT..HEAD_AT].copy_from_slice(&of_layer.w_o);
                d_x.iter_mut().zip(of_layer.x).for_each(|(sum, d)| *sum += d);
            }
            for (token, d_x) in sample.tokens.iter().zip(d_x.chunks(DIM)) {
                add(&mut gradients[KEY_AT + token[0] as usize * DIM..], 1.0, d_x);
                if token[1] != NO_VALUE {
                    add(&mut gradients[VALUE_AT + token[1] as usize * DIM..], 1.0, d_x);
                }
            }
            self.adam(&gradients);
        }
        self.history.push(answers.point);
        self.steps += 1;
        Ok(())
    }

    /// The attention weights of the last step's sequences, `[BATCH, LEN, LEN]`.
    pub(crate) fn weights(&self) -> Result<Vec<f32>, Error> {
        let x = self.embed(&Sample::of_step(self.seed, self.steps - 1));
        let mut layer = layer().with_weights();
        layer.saved = false;
        let outputs = self.runner.layer(&layer, Algorithm::Auto, &self.layer_inputs(&x))?;
        Ok(outputs.weights.unwrap_or_default())
    }

    fn embed(&self, sample: &Sample) -> Vec<f32> {
        let mut x = vec![0.0; BATCH * LEN * DIM];
        for (token, x) in sample.tokens.iter().zip(x.chunks_mut(DIM)) {
            add(x, 1.0, &self.parameters[KEY_AT + token[0] as usize * DIM..][..DIM]);
            if token[1] != NO_VALUE {
                add(x, 1.0, &self.parameters[VALUE_AT + token[1] as usize * DIM..][..DIM]);
            }
        }
        x
    }

    fn layer_inputs<'a>(&'a self, x: &'a [f32]) -> LayerInputs<'a> {
        let (w_qkv, w_o) = (&self.parameters[W_QKV_AT..W_O_AT], &self.parameters[W_O_AT..HEAD_AT]);
        LayerInputs { x, w_qkv, w_o, ..LayerInputs::default() }
    }

    /// As `loss.wgsl` and `head_gradient.wgsl`.
    fn answer(&self, sample: &Sample, x: &[f32], attended: &[f32]) -> Answers {
        let head = &self.parameters[HEAD_AT..];
        let mut answers = Answers {
            point: Point::default(),
            d_head: vec![0.0; VALUES * DIM],
            d_h: vec![0.0; x.len()],
        };
        for (sequence, target) in sample.targets.iter().enumerate() {
            let last = (sequence * LEN + LEN - 1) * DIM;
            let h: Vec<f32> = (last..last + DIM).map(|i| x[i] + attended[i]).collect();
            let rows = head.chunks(DIM).take(VALUES);
            let logits: Vec<f32> =
                rows.map(|row| row.iter().zip(&h).map(|(w, h)| w * h).sum()).collect();
            let most = logits.iter().copied().fold(f32::MIN, f32::max);
            let sum: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
            let right = logits[*target as usize];
            answers.point.loss += f64::from(sum.ln() + most - right) / BATCH as f64;
            answers.point.accuracy += f64::from(u8::from(right >= most)) / BATCH as f64;
            for (value, logit) in logits.iter().enumerate() {
                let is_target = f32::from(u8::from(value == *target as usize));
                let d = ((logit - most).exp() / sum - is_target) / BATCH as f32;
                add(&mut answers.d_head[value * DIM..], d, &h);
                add(&mut answers.d_h[last..], d, &head[value * DIM..][..DIM]);
            }
        }
        answers
    }

    /// As `adam.wgsl`.
    fn adam(&mut self, gradients: &[f32]) {
        let step = i32::try_from(self.steps + 1).expect("few");
        let [rest_of_mean, rest_of_square] = [0.9_f32, 0.999].map(|decay| 1.0 - decay.powi(step));
        for ((p, [mean, square]), g) in
            self.parameters.iter_mut().zip(&mut self.moments).zip(gradients)
        {
            *mean = 0.9 * *mean + 0.1 * g;
            *square = 0.999 * *square + 0.001 * g * g;
            *p -= RATE * (*mean / rest_of_mean) / ((*square / rest_of_square).sqrt() + 1e-8);
        }
    }
}

/// Adds a multiple of `x` to as many elements.
fn add(to: &mut [f32], by: f32, x: &[f32]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += by * x);
}
