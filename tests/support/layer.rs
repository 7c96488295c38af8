//! Whole layers in the plain order of the formula, forward and backward, in f64 or in f32.

use super::random::Random;
use std::ops::{Add, Div, Mul, Sub};
use wgpu_attention::{LayerGradients, LayerInputs, Pair, Problem, SelfAttention};

/// f32, as an honest evaluation takes it, or f64, which is the answer.
pub(crate) trait Real:
    Copy
    + From<f32>
    + Into<f64>
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    fn exp(self) -> Self;
}

impl Real for f32 {
    fn exp(self) -> Self {
        self.exp()
    }
}

impl Real for f64 {
    fn exp(self) -> Self {
        self.exp()
    }
}

/// The inputs of a layer; those that it does not have are empty.
#[derive(Clone)]
pub(crate) struct Data {
    pub(crate) x: Vec<f32>,
    pub(crate) context: Vec<f32>,
    /// Of q, k, v and o.
    pub(crate) w: [Vec<f32>; 4],
    pub(crate) b: [Vec<f32>; 4],
    w_qkv: Vec<f32>,
    b_qkv: Vec<f32>,
    /// Of dropout, where the layer has it.
    pub(crate) seed: Option<u64>,
}

impl Data {
    pub(crate) fn new(layer: &SelfAttention, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut fill = |rows: u32, width: u32, amplitude: f32| -> Vec<f32> {
            (0..rows * width).map(|_| random.unit() * amplitude).collect()
        };
        let s = layer.shape;
        let context_dim = layer.context_dim.unwrap_or(layer.model_dim);
        let context_rows = if layer.context_dim.is_some() { s.batch * s.kv_len } else { 0 };
        let [q, k, v] = [s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.v_head_dim];
        let heads = s.heads * s.v_head_dim;
        // Large enough that softmax is not flat.
        let sizes = [(q, layer.model_dim), (k, context_dim), (v, context_dim)];
        let [w_q, w_k, w_v] =
            sizes.map(|(rows, width)| fill(rows, width, 3.0 / f32::from(narrow(width)).sqrt()));
        let w_o = fill(layer.out_dim, heads, 2.0 / f32::from(narrow(heads)).sqrt());
        let present = u32::from(layer.biases);
        let b = [q, k, v, layer.out_dim].map(|width| fill(present, width, 1.0));
        Self {
            x: fill(s.batch * s.q_len, layer.model_dim, 1.0),
            context: fill(context_rows, context_dim, 1.0),
            w_qkv: if layer.packed { [&w_q[..], &w_k, &w_v].concat() } else { Vec::new() },
            b_qkv: if layer.packed { b[..3].concat() } else { Vec::new() },
            w: [w_q, w_k, w_v, w_o],
            b,
            seed: layer.dropout.map(|_| 0xfeed_0123_4567_89ab ^ seed << 20),
        }
    }

    pub(crate) fn inputs(&self, packed: bool) -> LayerInputs<'_> {
        let [w_q, w_k, w_v, w_o] = &self.w;
        let [b_q, b_k, b_v, b_o] = &self.b;
        let Self { x, context, w_qkv, b_qkv, seed, .. } = self;
        let all = LayerInputs { x, context, w_o, b_o, seed: *seed, ..LayerInputs::default() };
        if packed {
            LayerInputs { w_qkv, b_qkv, ..all }
        } else {
            LayerInputs { w_q, w_k, w_v, b_q, b_k, b_v, ..all }
        }
    }
}

fn narrow(width: u32) -> u16 {
    u16::try_from(width).expect("small")
}

/// `x w^T + b`, rows `width` wide.
fn linear<T: Real>(x: &[T], width: u32, w: &[f32], b: &[f32]) -> Vec<T> {
    let width = width as usize;
    let (rows, outputs) = (x.chunks_exact(width), w.chunks_exact(width));
    rows.flat_map(|x| {
        outputs.clone().enumerate().map(move |(n, w)| {
            let bias = T::from(b.get(n).copied().unwrap_or(0.0));
            x.iter().zip(w).fold(T::from(0.0), |sum, (x, w)| sum + *x * T::from(*w)) + bias
        })
    })
    .collect()
}

/// What is between the projections: q, k, v, weights `[batch, heads, q_len, kv_len]`, and what the heads give.
struct Inside<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    weights: Vec<T>,
    heads: Vec<T>,
}

/// Where the rows of a query head and of a key lie among all of their tensor.
fn query(layer: &SelfAttention, b: u32, h: u32, i: u32) -> usize {
    let s = layer.shape;
    ((b * s.q_len + i) * s.heads + h) as usize
}

fn key(layer: &SelfAttention, b: u32, h: u32, j: u32) -> usize {
    let s = layer.shape;
    ((b * s.kv_len + j) * s.kv_heads + h / s.group_size()) as usize
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::from(0.0), |sum, (a, b)| sum + *a * *b)
}

fn scale<T: Real>(layer: &SelfAttention) -> T {
    T::from(layer.scale.unwrap_or(1.0 / f32::from(narrow(layer.shape.head_dim)).sqrt()))
}

/// What dropout multiplies a weight by.
fn kept<T: Real>(layer: &SelfAttention, data: &Data, (b, h, i): (u32, u32, u32), j: u32) -> T {
    let Some(p) = layer.dropout else { return T::from(1.0) };
    let dropout = Problem::new(layer.shape).with_dropout(p).dropout.expect("asked for");
    let keeps = dropout.keeps(data.seed.unwrap_or_default(), Pair::new(b, h, i, j, 0));
    if keeps { T::from(1.0) / (T::from(1.0) - T::from(p)) } else { T::from(0.0) }
}

/// Every query row: batch, head, row.
fn rows(layer: &SelfAttention) -> impl Iterator<Item = (u32, u32, u32)> {
    let s = layer.shape;
    let heads = (0..s.batch).flat_map(move |b| (0..s.heads).map(move |h| (b, h)));
    heads.flat_map(move |(b, h)| (0..s.q_len).map(move |i| (b, h, i)))
}

fn inside<T: Real>(layer: &SelfAttention, data: &Data) -> Inside<T> {
    let s = layer.shape;
    let (d, dv) = (s.head_dim as usize, s.v_head_dim as usize);
    let x: Vec<T> = data.x.iter().map(|x| T::from(*x)).collect();
    let other: Vec<T> = data.context.iter().map(|x| T::from(*x)).collect();
    let (context, width) = match layer.context_dim {
        Some(width) => (&other, width),
        None => (&x, layer.model_dim),
    };
    let q = linear(&x, layer.model_dim, &data.w[0], &data.b[0]);
    let [k, v] = [1, 2].map(|i| linear(context, width, &data.w[i], &data.b[i]));
    let zero = T::from(0.0);
    let mut weights = Vec::new();
    let mut heads = vec![zero; (s.batch * s.q_len * s.heads) as usize * dv];
    for (b, h, i) in rows(layer) {
        let at = query(layer, b, h, i);
        let diagonal = layer.mask.diagonal(s.q_len, s.kv_len).expect("given");
        let seen = layer.mask.kv_range(s.kv_len, diagonal, i);
        let scores: Vec<T> = (seen.clone())
            .map(|j| dot(&q[at * d..][..d], &k[key(layer, b, h, j) * d..][..d]) * scale(layer))
            .collect();
        let max = scores
            .iter()
            .fold(T::from(f32::NEG_INFINITY), |max, x| if *x > max { *x } else { max });
        let exps: Vec<T> = scores.iter().map(|x| (*x - max).exp()).collect();
        let sum = exps.iter().fold(zero, |sum, x| sum + *x);
        let mut row = vec![zero; s.kv_len as usize];
        for (j, e) in seen.zip(exps) {
            row[j as usize] = e / sum;
            let v = &v[key(layer, b, h, j) * dv..][..dv];
            let p = e / sum * kept(layer, data, (b, h, i), j);
            heads[at * dv..].iter_mut().zip(v).for_each(|(o, v)| *o = *o + p * *v);
        }
        weights.extend(row);
    }
    Inside { q, k, v, weights, heads }
}

/// Output and weights.
pub(crate) fn formula<T: Real>(layer: &SelfAttention, data: &Data) -> (Vec<f64>, Vec<f64>) {
    let s = layer.shape;
    let Inside { weights, heads, .. } = inside::<T>(layer, data);
    let out = linear(&heads, s.heads * s.v_head_dim, &data.w[3], &data.b[3]);
    [out, weights].map(|all| all.into_iter().map(T::into).collect()).into()
}

/// Gradients of a layer, each as what it is the gradient of.
#[derive(Clone)]
pub(crate) struct Gradients {
    pub(crate) x: Vec<f64>,
    pub(crate) context: Vec<f64>,
    pub(crate) w: [Vec<f64>; 4],
    pub(crate) b: [Vec<f64>; 4],
}

/// Gradients of `sum out d_out`.
pub(crate) fn gradients<T: Real>(layer: &SelfAttention, data: &Data, d_out: &[f32]) -> Gradients {
    let s = layer.shape;
    let (d, dv) = (s.head_dim as usize, s.v_head_dim as usize);
    let Inside { q, k, v, weights, heads } = inside::<T>(layer, data);
    let typed = |data: &[f32]| data.iter().map(|x| T::from(*x)).collect::<Vec<T>>();
    let (x, context, d_out) = (typed(&data.x), typed(&data.context), typed(d_out));
    let zeros = |like: &[T]| vec![T::from(0.0); like.len()];
    let (mut d_x, mut d_context) = (zeros(&x), zeros(&context));
    let mut d_heads = zeros(&heads);
    let out_dim = layer.out_dim as usize;
    let back = linear_gradients(&d_out, out_dim, &heads, &data.w[3], layer.biases, &mut d_heads);

    let (mut d_q, mut d_k, mut d_v) = (zeros(&q), zeros(&k), zeros(&v));
    let add = |to: &mut [T], by: T, from: &[T]| {
        to.iter_mut().zip(from).for_each(|(to, x)| *to = *to + by * *x);
    };
    for ((b, h, i), weights) in rows(layer).zip(weights.chunks(s.kv_len.max(1) as usize)) {
        let at = query(layer, b, h, i);
        let d_row = &d_heads[at * dv..][..dv];
        let delta = dot(d_row, &heads[at * dv..][..dv]);
        for (j, p) in (0..s.kv_len).zip(weights) {
            let key = key(layer, b, h, j);
            let kept = kept::<T>(layer, data, (b, h, i), j);
            let d_p = kept * dot(d_row, &v[key * dv..][..dv]);
            let d_score = *p * (d_p - delta) * scale(layer);
            add(&mut d_q[at * d..][..d], d_score, &k[key * d..][..d]);
            add(&mut d_k[key * d..][..d], d_score, &q[at * d..][..d]);
            add(&mut d_v[key * dv..][..dv], *p * kept, d_row);
        }
    }
    let mut of = |d_y: &[T], i: usize, heads: u32, dim: u32| {
        let is_x = i == 0 || layer.context_dim.is_none();
        let (x, d_x) = if is_x { (&x, &mut d_x) } else { (&context, &mut d_context) };
        linear_gradients(d_y, (heads * dim) as usize, x, &data.w[i], layer.biases, d_x)
    };
    let of_q = of(&d_q, 0, s.heads, s.head_dim);
    let of_k = of(&d_k, 1, s.kv_heads, s.head_dim);
    let of_v = of(&d_v, 2, s.kv_heads, s.v_head_dim);
    let wide = |data: Vec<T>| data.into_iter().map(T::into).collect::<Vec<f64>>();
    let [of_q, of_k, of_v, of_o] = [of_q, of_k, of_v, back].map(|(w, b)| (wide(w), wide(b)));
    Gradients {
        x: wide(d_x),
        context: wide(d_context),
        w: [of_q.0, of_k.0, of_v.0, of_o.0],
        b: [of_q.1, of_k.1, of_v.1, of_o.1],
    }
}

/// Of one projection: those of w and b; that of x is added to `d_x`.
fn linear_gradients<T: Real>(
    d_y: &[T],
    outputs: usize,
    x: &[T],
    w: &[f32],
    biases: bool,
    d_x: &mut [T],
) -> (Vec<T>, Vec<T>) {
    let inputs = w.len() / outputs;
    let mut d_w = vec![T::from(0.0); w.len()];
    let mut d_b = vec![T::from(0.0); if biases { outputs } else { 0 }];
    for ((d_y, x), d_x) in d_y.chunks(outputs).zip(x.chunks(inputs)).zip(d_x.chunks_mut(inputs)) {
        for (n, d_y) in d_y.iter().enumerate() {
            for (k, x) in x.iter().enumerate() {
                d_w[n * inputs + k] = d_w[n * inputs + k] + *d_y * *x;
                d_x[k] = d_x[k] + *d_y * T::from(w[n * inputs + k]);
            }
            if let Some(sum) = d_b.get_mut(n) {
                *sum = *sum + *d_y;
            }
        }
    }
    (d_w, d_b)
}

/// By name, as `layer` has them.
impl Gradients {
    pub(crate) fn named(&self, layer: &SelfAttention) -> Vec<(&'static str, Vec<f64>)> {
        let Self { x, context, w, b } = self.clone();
        let [w_q, w_k, w_v, w_o] = w;
        let [b_q, b_k, b_v, b_o] = b;
        let mut all = vec![("x", x), ("context", context), ("w_o", w_o), ("b_o", b_o)];
        if layer.packed {
            all.extend([("w_qkv", [w_q, w_k, w_v].concat()), ("b_qkv", [b_q, b_k, b_v].concat())]);
        } else {
            all.extend([("w_q", w_q), ("w_k", w_k), ("w_v", w_v)]);
            all.extend([("b_q", b_q), ("b_k", b_k), ("b_v", b_v)]);
        }
        all.retain(|(_, data)| !data.is_empty());
        all
    }
}

/// The gradient of this name.
pub(crate) fn named<'a>(gradients: &'a LayerGradients, name: &str) -> &'a [f32] {
    match name {
        "x" => &gradients.x,
        "context" => &gradients.context,
        "w_q" => &gradients.w_q,
        "w_k" => &gradients.w_k,
        "w_v" => &gradients.w_v,
        "w_qkv" => &gradients.w_qkv,
        "w_o" => &gradients.w_o,
        "b_q" => &gradients.b_q,
        "b_k" => &gradients.b_k,
        "b_v" => &gradients.b_v,
        "b_qkv" => &gradients.b_qkv,
        "b_o" => &gradients.b_o,
        _ => panic!("no gradient of {name}"),
    }
}

/// The gradient of this name, to be filled in.
pub(crate) fn named_mut<'a>(gradients: &'a mut LayerGradients, name: &str) -> &'a mut Vec<f32> {
    match name {
        "x" => &mut gradients.x,
        "context" => &mut gradients.context,
        "w_q" => &mut gradients.w_q,
        "w_k" => &mut gradients.w_k,
        "w_v" => &mut gradients.w_v,
        "w_qkv" => &mut gradients.w_qkv,
        "w_o" => &mut gradients.w_o,
        "b_q" => &mut gradients.b_q,
        "b_k" => &mut gradients.b_k,
        "b_v" => &mut gradients.b_v,
        "b_qkv" => &mut gradients.b_qkv,
        "b_o" => &mut gradients.b_o,
        _ => panic!("no gradient of {name}"),
    }
}
