//! The file bridge, as another language uses it: the built example on generated files.

#![cfg(feature = "cpu")]

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Where cargo puts examples when it builds tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a test is a file");
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let program = folder.join("examples/attend");
    assert!(program.exists(), "{} is not built: `cargo build --examples`", program.display());
    program
}

fn attend(arguments: &str) -> Output {
    Command::new(program())
        .args(arguments.split_whitespace())
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .output()
        .expect("it runs")
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from((state >> 16) as u16 as i16) / 8192.0
        })
        .collect()
}

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn f32s(name: &'static str, shape: &[usize], seed: u32) -> Tensor {
    let data = values(shape.iter().product(), seed);
    (name, Dtype::F32, shape.into(), data.iter().flat_map(|x| x.to_le_bytes()).collect())
}

fn i32s(name: &'static str, data: &[i32]) -> Tensor {
    let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    (name, Dtype::I32, vec![data.len()], bytes)
}

fn write(name: &str, tensors: &[Tensor]) {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.clone(), data).expect("a tensor"))
    });
    let bytes = safetensors::serialize(views, None).expect("a file");
    std::fs::write(file(name), bytes).expect("written");
}

fn read(name: &str, tensor: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(file(name)).expect("written");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let view = tensors.tensor(tensor).expect("the tensor");
    assert_eq!(view.dtype(), Dtype::F32, "{tensor}");
    let data = view.data().as_chunks().0.iter().copied().map(f32::from_le_bytes).collect();
    (view.shape().to_vec(), data)
}

/// 2 sequences, 6 heads on 3, 11 queries, 17 keys, 20 and 12 wide.
fn qkv() -> Vec<Tensor> {
    vec![
        f32s("q", &[2, 6, 11, 20], 1),
        f32s("k", &[2, 3, 17, 20], 2),
        f32s("v", &[2, 3, 17, 12], 3),
    ]
}

fn answers(arguments: &str) {
    let got = attend(arguments);
    let message = String::from_utf8_lossy(&got.stderr);
    assert_eq!(got.status.code(), Some(0), "{arguments}: {message}");
}

/// Exit status 2, one line that says `what`, and nothing written.
fn refuses(arguments: &str, what: &str) {
    let out = file("refused-out");
    let _ = std::fs::remove_file(&out);
    let got = attend(&format!("{arguments} refused-out"));
    let message = String::from_utf8_lossy(&got.stderr);
    assert_eq!(got.status.code(), Some(2), "{arguments}: {message}");
    // Drivers may write there too.
    let lines: Vec<_> = message.lines().filter(|line| line.starts_with("attend: ")).collect();
    assert_eq!(lines.len(), 1, "{arguments}: {message}");
    assert!(lines[0].contains(what), "{arguments}: {message} lacks {what}");
    assert!(!out.exists(), "{arguments}: wrote {}", out.display());
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || (a - b).abs() < 2e-5)
}

#[test]
fn every_backend_gives_the_reference() {
    write("all-in", &qkv());
    let every = [
        "--window-left 2 --window-right 4 --scale -0.3",
        "",
        "--causal bottom-right",
        "--causal top-left --window-left 3",
        "--scale 0",
    ];
    // Slow software drivers compile for seconds.
    let small = std::env::var("WGPU_ATTENTION_TEST").is_ok_and(|catalogue| catalogue == "small");
    for options in &every[..if small { 1 } else { every.len() }] {
        answers(&format!("{options} --backend reference --weights all-in all-ref"));
        let [out, lse, weights] = ["out", "lse", "weights"].map(|name| read("all-ref", name));
        assert_eq!(out.0, [2, 6, 11, 12]);
        assert_eq!(lse.0, [2, 6, 11]);
        assert_eq!(weights.0, [2, 6, 11, 17]);
        for way in [
            "--backend cpu --weights",
            "--algorithm staged --weights",
            "--algorithm flash",
            "--algorithm auto --limits default",
        ] {
            answers(&format!("{options} {way} all-in all-out"));
            assert!(close(&read("all-out", "out").1, &out.1), "{options} {way}");
            assert!(close(&read("all-out", "lse").1, &lse.1), "{options} {way}");
            if way.contains("--weights") {
                let got = read("all-out", "weights").1;
                assert!(close(&got, &weights.1), "{options} {way}");
                let zeros = |w: &[f32]| w.iter().map(|w| *w == 0.0).collect::<Vec<_>>();
                assert_eq!(zeros(&got), zeros(&weights.1), "{options} {way}");
            }
        }
    }
}

#[test]
fn bshd_is_bhsd_with_axes_swapped() {
    let swap = |shape: &[usize], data: &[f32]| {
        let [_, heads, len, dim] = shape.try_into().expect("rank 4");
        let at = |i: usize| {
            let (x, h, l, b) =
                (i % dim, i / dim % heads, i / dim / heads % len, i / dim / heads / len);
            data[((b * heads + h) * len + l) * dim + x]
        };
        (0..data.len()).map(at).collect::<Vec<f32>>()
    };
    let mut swapped = Vec::new();
    for (name, _, shape, bytes) in qkv() {
        let data: Vec<f32> = bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect();
        let data = swap(&shape, &data);
        let [b, h, l, d] = shape.try_into().expect("rank 4");
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        swapped.push((name, Dtype::F32, vec![b, l, h, d], bytes));
    }
    write("bhsd-in", &qkv());
    write("bshd-in", &swapped);
    for way in ["--backend cpu", "--algorithm staged", "--algorithm flash"] {
        answers(&format!("{way} --causal bottom-right bhsd-in bhsd-out"));
        answers(&format!("{way} --causal bottom-right --layout bshd bshd-in bshd-out"));
        let (shape, data) = read("bhsd-out", "out");
        let (other_shape, other) = read("bshd-out", "out");
        assert_eq!(other_shape, [2, 11, 6, 12]);
        assert!(close(&swap(&shape, &data), &other), "{way}");
    }
}

#[test]
fn an_even_diagonal_offset_replaces_the_alignment() {
    let mut tensors = qkv();
    tensors.push(i32s("diag_offset", &[0, 0]));
    write("diagonal-in", &tensors);
    write("plain-in", &qkv());
    answers("--causal bottom-right diagonal-in diagonal-out");
    answers("--causal top-left plain-in plain-out");
    assert_eq!(read("diagonal-out", "out"), read("plain-out", "out"));
}

#[test]
fn empty_axes_are_answered() {
    write(
        "no-keys-in",
        &[f32s("q", &[1, 2, 3, 4], 1), f32s("k", &[1, 2, 0, 4], 2), f32s("v", &[1, 2, 0, 4], 3)],
    );
    for way in ["--backend reference", "--backend cpu", "--algorithm staged", "--algorithm flash"] {
        answers(&format!("{way} no-keys-in no-keys-out"));
        assert_eq!(read("no-keys-out", "out"), (vec![1, 2, 3, 4], vec![0.0; 24]), "{way}");
        assert_eq!(read("no-keys-out", "lse").1, [f32::NEG_INFINITY; 6], "{way}");
    }
}

#[test]
fn what_is_not_supported_yet_says_so() {
    write("later-in", &qkv());
    for options in [
        "--layout thd",
        "--softcap 30",
        "--dropout 0.1 --seed 1",
        "--rotary half",
        "--dtype f16",
        "--dtype bf16",
        "--algorithm split",
        "--scores raw",
    ] {
        refuses(&format!("{options} later-in"), "not supported yet");
    }
    for name in ["mask", "bias", "sinks", "kv_lens", "cu_seqlens_q", "k_pages", "d_out", "keep"] {
        let mut tensors = qkv();
        tensors.push(f32s(name, &[2], 1));
        write("later-tensor-in", &tensors);
        refuses("later-tensor-in", &format!("tensor {name} is not supported yet"));
    }
    let mut tensors = qkv();
    tensors.push(i32s("diag_offset", &[0, 1]));
    write("later-offsets-in", &tensors);
    refuses("--causal top-left later-offsets-in", "not supported yet");
    let halves = |name: &'static str, shape: &[usize]| {
        (name, Dtype::F16, shape.to_vec(), vec![0; 2 * shape.iter().product::<usize>()])
    };
    write(
        "half-in",
        &[halves("q", &[1, 1, 2, 4]), halves("k", &[1, 1, 2, 4]), halves("v", &[1, 1, 2, 4])],
    );
    refuses("half-in", "not supported yet");
    answers("--dtype f32 half-in half-out");
}

#[test]
fn bad_calls_name_what_is_wrong() {
    write("bad-in", &qkv());
    for (arguments, what) in [
        ("--frob bad-in", "--frob"),
        ("--scale big bad-in", "--scale"),
        ("--scale inf bad-in", "scale"),
        ("--window-left -1 bad-in", "--window-left"),
        ("--causal sideways bad-in", "--causal"),
        ("--weights --algorithm flash bad-in", "--weights"),
        ("--backend cpu --algorithm staged bad-in", "--algorithm"),
        ("--backend cpu --adapter x bad-in", "--adapter"),
        ("--backend reference --limits default bad-in", "--limits"),
        ("--adapter no-such-adapter bad-in", "no-such-adapter"),
        ("bad-in bad-in", "two files"),
        ("absent-in", "absent-in"),
    ] {
        refuses(arguments, what);
    }
    std::fs::write(file("garbage-in"), b"no tensors here").expect("written");
    refuses("garbage-in", "garbage-in");
    let with = |name: &str, tensor: Option<Tensor>| {
        let mut tensors: Vec<_> = qkv().into_iter().filter(|(other, ..)| *other != name).collect();
        tensors.extend(tensor);
        write("bad-tensor-in", &tensors);
    };
    for (name, tensor, what) in [
        ("v", None, "tensor v is missing"),
        ("x", Some(f32s("x", &[1], 1)), "tensor x is unknown"),
        ("k", Some(f32s("k", &[2, 3, 17], 1)), "tensor k has shape"),
        ("k", Some(f32s("k", &[2, 3, 17, 21], 1)), "head_dim is 21"),
        ("k", Some(f32s("k", &[1, 3, 17, 20], 1)), "batch is 1"),
        ("v", Some(f32s("v", &[2, 3, 16, 12], 1)), "length is 16"),
        ("v", Some(f32s("v", &[2, 1, 17, 12], 1)), "heads is 1"),
        ("q", Some(f32s("q", &[2, 4, 11, 20], 1)), "kv_heads (3) does not divide heads (4)"),
        ("q", Some(f32s("q", &[2, 0, 11, 20], 1)), "heads is zero"),
        ("q", Some(i32s("q", &[1])), "tensor q"),
        ("diag_offset", Some(i32s("diag_offset", &[1])), "diag_offset"),
    ] {
        with(name, tensor);
        refuses("bad-tensor-in", what);
    }
}

#[test]
fn many_calls_are_answered_line_by_line() {
    write("jobs-in", &qkv());
    let lines: &[u8] = b"jobs-in jobs-out1\n\
        --softcap 3 jobs-in jobs-out2\n\
        \n\
        --backend reference jobs-in jobs-out3\n\
        --adapter x jobs-in jobs-out4\n\
        \xff\xfe\n\
        --causal top-left jobs-in jobs-out5\n";
    for out in 1..=5 {
        let _ = std::fs::remove_file(file(&format!("jobs-out{out}")));
    }
    let mut child = Command::new(program())
        .args(["--causal", "bottom-right", "--jobs", "-"])
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    child.stdin.take().expect("piped").write_all(lines).expect("it reads");
    let got = child.wait_with_output().expect("it ends");
    assert_eq!(got.status.code(), Some(2));
    let text = String::from_utf8(got.stdout).expect("UTF-8");
    let starts: Vec<_> = text.lines().map(|line| line.split(':').next().expect("a part")).collect();
    let expected = ["ok 1", "error 2", "error 3", "ok 4", "error 5", "error 6", "ok 7"];
    assert_eq!(starts, expected, "{text}");
    assert!(text.contains("--softcap is not supported yet"), "{text}");
    for (out, written) in [(1, true), (2, false), (3, true), (4, false), (5, true)] {
        assert_eq!(file(&format!("jobs-out{out}")).exists(), written, "jobs-out{out}");
    }
    assert!(close(&read("jobs-out1", "out").1, &read("jobs-out3", "out").1));
    assert!(!close(&read("jobs-out1", "out").1, &read("jobs-out5", "out").1));

    std::fs::write(file("jobs"), "jobs-in jobs-out1\n").expect("written");
    let got = attend("--jobs jobs");
    assert_eq!((got.status.code(), got.stdout.as_slice()), (Some(0), b"ok 1\n".as_slice()));
}
