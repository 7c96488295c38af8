//! x
use std::time::Instant;
use wgpu_attention::*;
fn main() {
    env_logger::init();
    let mut seed = 1u64;
    let mut rnd = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    for class in [DeviceClass::Software, DeviceClass::Hardware] {
        let mut o = RunnerOptions::default();
        o.software = true;
        o.gpu_only = true;
        o.class = Some(class);
        let runner = Runner::with_options(o).unwrap();
        for (s, mask) in [
            (Shape::self_attention(2, 4, 100, 64).with_kv_heads(2), Mask::FULL),
            (Shape::self_attention(1, 4, 130, 32), Mask::CAUSAL),
            (Shape::cross_attention(1, 2, 5, 77, 128), Mask::window(9)),
            (Shape::cross_attention(1, 3, 50, 20, 33).with_v_head_dim(5), Mask::CAUSAL),
            (Shape::cross_attention(1, 2, 70, 201, 192), Mask::CAUSAL),
        ] {
            let p = Problem::new(s).mask(mask).with_lse();
            let n = |h: u32, l: u32, d: u32| (s.batch * h * l * d) as usize;
            let q: Vec<f32> = (0..n(s.heads, s.q_len, s.head_dim)).map(|_| rnd() * 8.0).collect();
            let k: Vec<f32> = (0..n(s.kv_heads, s.kv_len, s.head_dim)).map(|_| rnd()).collect();
            let v: Vec<f32> = (0..n(s.kv_heads, s.kv_len, s.v_head_dim)).map(|_| rnd()).collect();
            let want = reference::forward(&p, &q, &k, &v);
            for a in [Algorithm::Flash, Algorithm::Staged] {
                let got = runner.forward_with(&p, a, &Inputs::new(&q, &k, &v)).unwrap();
                let e = got
                    .out
                    .iter()
                    .zip(&want.out)
                    .map(|(a, b)| (f64::from(*a) - b).abs())
                    .fold(0.0, |m: f64, x| if x.is_nan() { f64::INFINITY } else { m.max(x) });
                let el = got
                    .lse
                    .unwrap()
                    .iter()
                    .zip(&want.lse)
                    .map(|(a, b)| if f64::from(*a) == *b { 0.0 } else { (f64::from(*a) - b).abs() })
                    .fold(0.0, |m: f64, x| if x.is_nan() { f64::INFINITY } else { m.max(x) });
                println!("{class:?} {a:?} {s:?} err {e:.2e} lse {el:.2e}");
            }
        }
        for (s, mask) in [
            (Shape::self_attention(1, 12, 512, 64), Mask::FULL),
            (Shape::self_attention(1, 4, 1024, 128), Mask::CAUSAL),
        ] {
            let p = Problem::new(s).mask(mask);
            let n = (s.batch * s.heads * s.q_len * s.head_dim) as usize;
            let q: Vec<f32> = (0..n).map(|_| rnd() * 8.0).collect();
            for a in [Algorithm::Flash, Algorithm::Staged] {
                let mut best = f64::MAX;
                for _ in 0..3 {
                    let t = Instant::now();
                    runner.forward_with(&p, a, &Inputs::new(&q, &q, &q)).unwrap();
                    best = best.min(t.elapsed().as_secs_f64());
                }
                println!(
                    "{class:?} {a:?} {s:?}: {:.1} ms {:.1} GFLOP/s",
                    best * 1e3,
                    Cost::of(&p).flops as f64 / best * 1e-9
                );
            }
        }
    }
}
