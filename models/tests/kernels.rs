//! Every operation on a GPU against the CPU path, and that against f64. Needs no weights.
#![allow(clippy::cast_possible_truncation, reason = "expected values are rounded once, from f64")]

use crate::support::files;
use crate::support::{difference, gpu, noise};
use wgpu_attention::{DeviceClass, Runner};
use wgpu_attention_models::Machine;
use wgpu_attention_models::checkpoint::Checkpoint;
use wgpu_attention_models::machine::Tensor;
use wgpu_attention_models::matrix::Matrix;
use wgpu_attention_models::program::{Finish, Linear, Norm, Program, Sampling};

/// A name, and what makes operations and returns the tensor that they leave a result in.
type Case<'a> = (&'a str, &'a dyn Fn(&Machine, &mut Program) -> Tensor);

/// The CPU, and a GPU with the kernels of a software one and with those of hardware.
fn all_machines(test: &str) -> Vec<(String, Machine)> {
    let mut machines = vec![("the CPU".to_owned(), Machine::of(Runner::cpu()))];
    machines.extend(gpu(test, Some(DeviceClass::Software)));
    machines.extend(gpu(test, Some(DeviceClass::Hardware)));
    machines
}

/// Weights in all forms that there are: 16 bits, blocks in 8 and in 4 bits, an int8 factor a row.
fn matrices() -> Vec<Matrix> {
    let folder = files::folder("kernels");
    let (rows, cols) = (files::INNER, files::WIDTH);
    let weights = noise(rows * cols, 7);
    let shape = vec![cols as u64, rows as u64];
    let tensors = [
        ("eight".to_owned(), shape.clone(), 8, files::q8_0(&weights).0),
        ("four".to_owned(), shape, 3, files::q4_1(&weights).0),
    ];
    let path = folder.join("some.gguf");
    std::fs::write(&path, files::gguf("llama", &tensors)).expect("written");
    let gguf = Checkpoint::open(&path, "llama").expect("a file");
    let path = folder.join("some.bin");
    std::fs::write(&path, files::marian("ssru")).expect("written");
    let marian = Checkpoint::open(&path, "transformer").expect("a file");
    vec![
        Matrix::rounded(rows, cols, &weights),
        gguf.matrix("eight", [rows, cols]).expect("a matrix"),
        gguf.matrix("four", [rows, cols]).expect("a matrix"),
        marian.matrix("encoder_l1_ffn_W1.weight", [rows, cols]).expect("a matrix"),
    ]
}

/// What a machine makes of operations.
fn results(machine: &Machine, ops: impl Fn(&Machine, &mut Program) -> Tensor) -> Vec<f32> {
    let mut program = Program::new(machine);
    let out = ops(machine, &mut program);
    program.run().expect("ran");
    machine.read(&out).expect("read")
}

#[test]
fn stored_weights_are_what_the_file_says() {
    let weights = noise(files::INNER * files::WIDTH, 7);
    let matrices = matrices();
    assert_eq!(matrices[1].weights(), files::q8_0(&weights).1);
    assert_eq!(matrices[2].weights(), files::q4_1(&weights).1);
    // Three forms on top of each other are one, rounded to 16 bits.
    let stacked = Matrix::stacked(&matrices[..3]);
    let expected: Vec<f32> = matrices[..3].iter().flat_map(Matrix::weights).collect();
    assert_eq!((stacked.rows, stacked.cols), (3 * files::INNER, files::WIDTH));
    assert!(difference(&stacked.weights(), &expected) < 5e-4);
    // Of one form it stays that form, exactly.
    let twice = Matrix::stacked(&[matrices[2].clone(), matrices[2].clone()]);
    assert_eq!(twice.weights(), [matrices[2].weights(), matrices[2].weights()].concat());
}

#[test]
fn products_of_every_form_of_weights_are_right() {
    let test = "products_of_every_form_of_weights_are_right";
    for (name, machine) in all_machines(test) {
        for (form, matrix) in matrices().iter().enumerate() {
            for (rows, biased, finish) in [
                (1, false, Finish::Store),
                (1, true, Finish::Add),
                (1, true, Finish::Relu),
                (37, true, Finish::Store),
                (37, false, Finish::Add),
                (37, true, Finish::Relu),
                (130, true, Finish::Gelu),
            ] {
                let (inputs, outputs) = (matrix.cols, matrix.rows);
                let x = noise(rows * inputs, 3);
                let before = noise(rows * outputs, 4);
                let bias = if biased { noise(outputs, 5) } else { vec![0.0; outputs] };
                let found = results(&machine, |machine, program| {
                    let out = machine.tensor(&before).expect("room");
                    let bias = biased.then(|| machine.tensor(&bias).expect("room"));
                    let (x, w) =
                        (machine.tensor(&x).expect("room"), machine.weights(matrix).expect("room"));
                    program.linear(&x, &Linear { w, bias }, finish, &out).expect("a kernel");
                    out
                });
                let weights = matrix.weights();
                let expected: Vec<f32> = (0..rows * outputs)
                    .map(|i| {
                        let (row, output) = (i / outputs, i % outputs);
                        let pairs = x[row * inputs..][..inputs]
                            .iter()
                            .zip(&weights[output * inputs..][..inputs]);
                        let sum: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        let y = sum + f64::from(bias[output]);
                        (match finish {
                            Finish::Store => y,
                            Finish::Add => y + f64::from(before[i]),
                            Finish::Relu => y.max(0.0),
                            Finish::Gelu => 0.5 * y * (1.0 + erf(y / 2_f64.sqrt())),
                        }) as f32
                    })
                    .collect();
                let off = difference(&found, &expected);
                assert!(off < 2e-6, "{name}, form {form}, {rows} rows, {finish:?}: off by {off}");
            }
        }
    }
}

/// The series of the error function, and where that converges slowly its limit.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn norms_hold_where_a_stream_is_large() {
    for (name, machine) in all_machines("norms_hold_where_a_stream_is_large") {
        for biased in [false, true] {
            let (rows, width) = (5, 192);
            let x: Vec<f32> = noise(rows * width, 1).iter().map(|x| 25_000.0 * (x + 0.9)).collect();
            let (scale, bias) = (noise(width, 2), noise(width, 3));
            let found = results(&machine, |machine, program| {
                let out = machine.zeros(x.len()).expect("room");
                let [x, scale, bias] =
                    [&x, &scale, &bias].map(|values| machine.tensor(values).expect("room"));
                let bias = biased.then_some(bias);
                let norm = Norm { scale, bias, epsilon: 1e-5 };
                program.norm(&x, &norm, &out).expect("a kernel");
                out
            });
            let mut expected = Vec::new();
            for row in x.chunks(width) {
                let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
                let mean = if biased { row.iter().sum::<f64>() / width as f64 } else { 0.0 };
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                for (i, x) in row.iter().enumerate() {
                    let shift = if biased { f64::from(bias[i]) } else { 0.0 };
                    expected.push(
                        ((x - mean) / (variance + 1e-5).sqrt() * f64::from(scale[i]) + shift)
                            as f32,
                    );
                }
            }
            let off = difference(&found, &expected);
            assert!(off < 5e-6, "{name}, biased {biased}: off by {off}");
        }
    }
}

#[test]
fn everything_else_is_the_same_everywhere() {
    let test = "everything_else_is_the_same_everywhere";
    let machines = all_machines(test);
    let matrix = &matrices()[1];
    let room = "room";
    let width = matrix.cols;
    let cases: [Case<'_>; 5] = [
        ("embed", &|machine, program| {
            // One token that there is not, and positions past the last.
            let out = machine.zeros(6 * width).expect(room);
            let tokens = machine.tensor(&[3_u32, u32::MAX, 95, 0, 96, 7]).expect(room);
            let places = machine.tensor(&noise(4 * width, 1)).expect(room);
            let positions = machine.tensor(&[2_u32, 3, 4, 2, 3, u32::MAX]).expect(room);
            let table = machine.weights(matrix).expect(room);
            let places = Some((&places, &positions));
            program.embed(&tokens, (&table, 8.0), places, &out).expect("a kernel");
            out
        }),
        ("gate", &|machine, program| {
            let out = machine.zeros(3 * width).expect(room);
            let x: Vec<f32> = noise(6 * width, 2).iter().map(|x| 200.0 * x).collect();
            program.gate(&machine.tensor(&x).expect(room), width, &out).expect("a kernel");
            out
        }),
        ("ssru", &|machine, program| {
            let out = machine.tensor(&noise(width, 3)).expect(room);
            let x: Vec<f32> = noise(2 * width, 4).iter().map(|x| 9.0 * x).collect();
            let (x, state) =
                (machine.tensor(&x).expect(room), machine.tensor(&noise(width, 5)).expect(room));
            program.ssru(&x, &state, &out).expect("a kernel");
            program.ssru(&x, &state, &out).expect("a kernel");
            out
        }),
        ("pool", &|machine, program| {
            let out = machine.zeros(2 * width).expect(room);
            let x = machine.tensor(&noise(2 * 5 * width, 6)).expect(room);
            let lens = machine.tensor(&[5_u32, 2]).expect(room);
            program.pool(&x, &lens, &out).expect("a kernel");
            out
        }),
        ("choose", &|machine, program| {
            let mut logits = noise(5000, 7);
            (logits[4321], logits[4777]) = (2.0, 2.0);
            let logits = machine.tensor(&logits).expect(room);
            let [step, token] = [(); 2].map(|()| machine.zeros(1).expect(room));
            program.choose(&logits, Sampling::Greedy, &step, &token).expect("a kernel");
            token
        }),
    ];
    for (what, ops) in cases {
        let expected = results(&machines[0].1, ops);
        assert!(expected.iter().any(|x| x.to_bits() != 0), "{what}: nothing was computed");
        for (name, machine) in &machines[1..] {
            let found = results(machine, ops);
            if what == "choose" {
                // Of two that are as great, the first: a token, not a number.
                assert_eq!((found[0].to_bits(), expected[0].to_bits()), (4321, 4321), "{name}");
            } else {
                let off = difference(&found, &expected);
                assert!(off < 2e-6, "{name}, {what}: off by {off}");
            }
        }
    }
}

/// Draws of many steps, against the probabilities that they should have.
#[test]
fn tokens_are_drawn_as_often_as_they_are_probable() {
    let test = "tokens_are_drawn_as_often_as_they_are_probable";
    for (name, machine) in all_machines(test) {
        // With top_p, the last two are never drawn: those before have 0.95 already.
        let shares = [0.5_f32, 0.25, 0.2, 0.03, 0.02];
        let mut logits = vec![-90.0; 300];
        for (i, share) in shares.iter().enumerate() {
            logits[i * 60 + 7] = share.ln() * 0.7;
        }
        let logits = machine.tensor(&logits).expect("room");
        let [step, token] = [(); 2].map(|()| machine.zeros(1).expect("room"));
        let sampling = Sampling::Random { temperature: 0.7, top_p: 0.9, seed: 11 };
        let fresh: Vec<f32> = machine.read(&logits).expect("read");
        let mut program = Program::new(&machine);
        program.choose(&logits, sampling, &step, &token).expect("a kernel");
        let mut counts = [0_u32; 5];
        const DRAWS: u32 = 1500;
        for draw in 0..DRAWS {
            machine.write(&step, &[draw]);
            machine.write(&logits, &fresh);
            program.run().expect("ran");
            let drawn = machine.read::<u32>(&token).expect("read")[0] as usize;
            assert_eq!(drawn % 60, 7, "{name}: {drawn} was drawn");
            counts[drawn / 60] += 1;
        }
        assert_eq!(counts[3..], [0, 0], "{name}: {counts:?}");
        for (count, share) in counts.iter().zip(&shares[..3]) {
            let (found, expected) = (*count as f32 / DRAWS as f32, share / 0.95);
            // Three standard deviations of the draws are 0.04.
            assert!((found - expected).abs() < 0.04, "{name}: {counts:?}");
        }
    }
}
