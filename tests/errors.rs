//! Every error that can be had without a GPU, with its exact message.

#![cfg(feature = "cpu")]

use std::fmt::{Debug, Display};
use wgpu_attention::{
    Algorithm, Attention, BindError, Capabilities, DType, DeviceClass, Diagonal, Download,
    DownloadError, Error, Inputs, LayerInputs, Mask, MaskFormat, Pages, Pairs, Plan, PlanError,
    Problem, ProblemError, Runner, RunnerOptions, ScoreStage, SelfAttention, Shape, Slopes,
    Strides, Tensors,
};

fn says<T: Debug, E: Display>(result: Result<T, E>, message: &str) -> E {
    let error = result.err().unwrap_or_else(|| panic!("not refused: {message}"));
    assert_eq!(error.to_string(), message);
    error
}

fn square() -> Problem {
    Problem::new(Shape::self_attention(1, 2, 3, 4))
}

fn strides(batch: u64, head: u64, row: u64) -> Strides {
    Strides { batch, head, row }
}

/// Refused by itself, by a plan, and by the CPU path, with the same words.
fn ill_formed(problem: Problem, wanted: impl FnOnce(&ProblemError) -> bool, message: &str) {
    let error = says(problem.validate(), message);
    assert!(wanted(&error), "{error:?}");
    let planned = Plan::new(&problem, &Capabilities::portable(), Algorithm::Auto);
    says(planned, message);
    let error = says(Runner::cpu().forward(&problem, &Inputs::new(&[], &[], &[])), message);
    assert!(matches!(error, Error::Problem(_)), "{error:?}");
}

#[test]
fn shapes_that_mean_nothing_are_refused() {
    let shape = Shape::self_attention(1, 4, 3, 8);
    for (shape, axis) in [
        (Shape::self_attention(1, 0, 3, 8).with_kv_heads(1), "heads"),
        (shape.with_kv_heads(0), "kv_heads"),
        (Shape::self_attention(1, 4, 3, 0).with_v_head_dim(8), "head_dim"),
        (shape.with_v_head_dim(0), "v_head_dim"),
    ] {
        let wanted = ProblemError::EmptyAxis { axis };
        ill_formed(Problem::new(shape), |error| *error == wanted, &format!("{axis} is zero"));
    }
    for kv_heads in [3, 8] {
        let wanted = ProblemError::UngroupedHeads { heads: 4, kv_heads };
        let message = format!("kv_heads ({kv_heads}) does not divide heads (4)");
        ill_formed(Problem::new(shape.with_kv_heads(kv_heads)), |e| *e == wanted, &message);
    }
    let max = 1 << 29;
    let len = max + 1;
    for (shape, axis) in [
        (Shape::cross_attention(1, 1, len, 1, 1), "q_len"),
        (Shape::cross_attention(1, 1, 1, len, 1), "kv_len"),
        (Shape::self_attention(1, 1, 1, len).with_v_head_dim(1), "head_dim"),
        (Shape::self_attention(1, 1, 1, 1).with_v_head_dim(u32::MAX), "v_head_dim"),
    ] {
        let len = if axis == "v_head_dim" { u32::MAX } else { len };
        let wanted = ProblemError::TooLong { axis, len, max };
        let message = format!("{axis} ({len}) is more than 536870912");
        ill_formed(Problem::new(shape), |error| *error == wanted, &message);
    }
    let longest = Problem::new(Shape::self_attention(1, 1, max, 1));
    assert_eq!(longest.validate(), Ok(()));
}

#[test]
fn numbers_out_of_range_are_refused() {
    for (scale, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let message = format!("scale ({shown}) is not finite");
        let wanted = |error: &ProblemError| matches!(error, ProblemError::Scale { .. });
        ill_formed(square().scale(scale), wanted, &message);
    }
    for scale in [0.0, -2.0, f32::MIN_POSITIVE, f32::MAX] {
        assert_eq!(square().scale(scale).validate(), Ok(()));
    }
    for (softcap, shown) in [(0.0, "0"), (-1.5, "-1.5"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")]
    {
        let message = format!("softcap ({shown}) is not finite and above 0");
        let wanted = |error: &ProblemError| matches!(error, ProblemError::Softcap { .. });
        ill_formed(square().softcap(softcap), wanted, &message);
    }
    for (p, shown) in [(1.0, "1"), (-0.25, "-0.25"), (f32::NAN, "NaN")] {
        let message = format!("dropout ({shown}) is not in [0, 1)");
        let wanted = |error: &ProblemError| matches!(error, ProblemError::Dropout { .. });
        ill_formed(square().with_dropout(p), wanted, &message);
    }
    let message = "a sliding window counts the token itself: its width is at least 1, not 0";
    assert_eq!(says(Mask::from_sliding_window(0), message), ProblemError::EmptyWindow);
}

#[test]
fn strides_that_overlap_or_reach_too_far_are_refused() {
    for out in [strides(24, 12, 3), strides(24, 11, 4), strides(24, 0, 4), strides(24, 12, 0)] {
        let Strides { batch, head, row } = out;
        let wanted = ProblemError::OverlappingRows { tensor: "out", strides: out };
        let message = format!(
            "rows of out overlap: strides of {batch} (batch), {head} (head), {row} (row) elements"
        );
        ill_formed(square().out_strides(out), |error| *error == wanted, &message);
        assert_eq!(square().q_strides(out).validate(), Ok(()), "an input may repeat rows");
    }
    assert_eq!(
        square().out_strides(strides(0, 4, 8)).validate(),
        Ok(()),
        "one sequence, interleaved"
    );

    for far in [1 << 61, 1 << 62, u64::MAX] {
        let far = strides(24, far, 4);
        for (problem, tensor) in [
            (square().q_strides(far), "q"),
            (square().k_strides(far), "k"),
            (square().v_strides(far), "v"),
            (square().out_strides(far), "out"),
        ] {
            let wanted = ProblemError::Unaddressable { tensor };
            let message = format!("the strides of {tensor} reach past 2^63 bytes");
            ill_formed(problem, |error| *error == wanted, &message);
        }
    }
}

#[test]
fn what_an_algorithm_lacks_is_refused() {
    let plan = |problem, algorithm| Plan::new(&problem, &Capabilities::portable(), algorithm);
    let (weights, scores) = (square().with_weights(), square().with_scores(ScoreStage::Raw));
    let splits = square().with_splits(2);
    let keep = square().with_given_dropout(0.5);
    for (problem, by, algorithm, what) in [
        (&weights, Algorithm::Flash, "flash", "weights"),
        (&weights, Algorithm::Split, "split", "weights"),
        (&keep, Algorithm::Flash, "flash", "dropout by a given mask"),
        (&keep, Algorithm::Split, "split", "dropout by a given mask"),
        (&scores, Algorithm::Flash, "flash", "scores"),
        (&scores, Algorithm::Split, "split", "scores"),
        (&splits, Algorithm::Flash, "flash", "splits"),
        (&splits, Algorithm::Staged, "staged", "splits"),
    ] {
        let error = says(plan(problem.clone(), by), &format!("{algorithm} does not give {what}"));
        assert_eq!(error, PlanError::AlgorithmLacks { algorithm, what });
    }
}

/// Blocks and pages that cannot be.
#[test]
fn blocks_and_pages_that_do_not_fit_are_refused() {
    let blocks = |shape: Shape| Problem::new(shape).kv_dtype(DType::Q8);
    let whole = Shape::self_attention(1, 1, 4, 64);
    for (problem, tensor) in [
        (Problem::new(whole).dtype(DType::Q4), "q"),
        (Problem::new(whole).out_dtype(DType::Q4), "out"),
        (Problem::new(whole).with_bias(DType::Q4, Pairs::new([1, 1, 4, 4])), "bias"),
    ] {
        let wanted = ProblemError::Quantised { tensor, dtype: DType::Q4 };
        let message = format!("{tensor} cannot be Q4: only k and v can");
        ill_formed(problem, |error| *error == wanted, &message);
    }
    let strides = Strides { batch: 256, head: 256, row: 72 };
    for (problem, what, found) in [
        (blocks(Shape::self_attention(1, 1, 4, 40)), "head_dim", 40),
        (blocks(whole.with_v_head_dim(16)), "v_head_dim", 16),
        (blocks(whole).k_strides(strides), "the row stride of k", 72),
        (blocks(whole).v_strides(strides), "the row stride of v", 72),
    ] {
        let wanted = ProblemError::PartOfBlock { what, dtype: DType::Q8, found };
        let message =
            format!("{what} ({found}) is no multiple of the 32 elements of a block of Q8");
        ill_formed(problem, |error| *error == wanted, &message);
    }
    for (pages, axis) in [(Pages::new(0, 16), "pages"), (Pages::new(16, 0), "page_len")] {
        let wanted = ProblemError::EmptyAxis { axis };
        let problem = Problem::new(whole).with_pages(pages);
        ill_formed(problem, |error| *error == wanted, &format!("{axis} is zero"));
    }
    let packed = Problem::packed(whole).with_pages(Pages::new(4, 16));
    let wanted = ProblemError::PackedPairs { what: "pages" };
    ill_formed(packed, |error| *error == wanted, "pages cannot be given for packed sequences");
    let splits = Problem::new(whole).with_splits(0);
    let wanted = ProblemError::EmptyAxis { axis: "splits" };
    ill_formed(splits, |error| *error == wanted, "splits is zero");
}

/// Pairs that do not fit the shape of `square`, `[1, 2, 3, 3]`.
#[test]
fn masks_and_biases_that_do_not_fit_are_refused() {
    for (axes, axis, found, needed) in [
        ([2, 2, 3, 3], "batch", 2, 1),
        ([1, 3, 3, 3], "heads", 3, 2),
        ([1, 2, 4, 3], "q_len", 4, 3),
        ([1, 1, 1, 2], "kv_len", 2, 3),
        ([1, 1, 0, 3], "q_len", 0, 3),
    ] {
        for (problem, tensor) in [
            (square().with_boolean_mask(MaskFormat::Bytes, Pairs::new(axes)), "mask"),
            (square().with_boolean_mask(MaskFormat::Bits, Pairs::new(axes)), "mask"),
            (square().with_bias(DType::F16, Pairs::new(axes)), "bias"),
        ] {
            let wanted = ProblemError::Broadcast { tensor, axis, needed, found };
            let message = format!("{tensor}: {axis} is {found}, needed is {needed} or 1");
            ill_formed(problem, |error| *error == wanted, &message);
        }
    }
    let far = Pairs::new([1, 2, 3, 3]).with_strides([0, u64::MAX, 1, 1]);
    let wanted = ProblemError::Unaddressable { tensor: "bias" };
    let message = "the strides of bias reach past 2^63 bytes";
    ill_formed(square().with_bias(DType::F32, far), |error| *error == wanted, message);

    let packed = || Problem::packed(Shape::self_attention(1, 2, 3, 4));
    for (problem, what) in [
        (packed().with_boolean_mask(MaskFormat::Bytes, Pairs::new([1; 4])), "a boolean mask"),
        (packed().with_bias(DType::F32, Pairs::new([1; 4])), "bias"),
    ] {
        let wanted = ProblemError::PackedPairs { what };
        let message = format!("{what} cannot be given for packed sequences");
        ill_formed(problem, |error| *error == wanted, &message);
    }
    let message = "a block mask needs a boolean mask, a bias or a mask function to stand for";
    ill_formed(square().with_block_mask(), |e| *e == ProblemError::NothingHidden, message);
}

/// In host memory, where they can be: nothing is computed with wrong ones.
#[test]
fn small_inputs_that_do_not_fit_are_refused() {
    let data = [0.0; 48];
    let inputs = || Inputs::new(&data, &data, &data);
    // Two sequences, two heads, three queries and keys.
    let two = || Problem::new(Shape::self_attention(2, 2, 3, 4));
    let packed = || Problem::packed(Shape::self_attention(2, 2, 3, 4));
    let bytes = || two().with_boolean_mask(MaskFormat::Bytes, Pairs::new([1, 1, 3, 3]));
    let per_sequence = || two().mask(Mask::CAUSAL.along(Diagonal::PerSequence));
    let shown = [true; 9];
    for (problem, inputs, message) in [
        (bytes(), inputs(), "mask has 0 elements, the problem needs 9"),
        (bytes(), inputs().mask(&shown[..8]), "mask has 8 elements, the problem needs 9"),
        (two(), inputs().mask(&shown), "mask was given, but the plan does not use it"),
        (two(), inputs().bias(&data), "bias was given, but the plan does not use it"),
        (
            two().with_bias(DType::BF16, Pairs::new([2, 1, 1, 3])),
            inputs().bias(&data[..5]),
            "bias has 5 elements, the problem needs 6",
        ),
        (
            two().with_alibi(Slopes::PerHead),
            inputs().alibi_slopes(&data[..4]),
            "alibi_slopes has 4 elements, the problem needs 2",
        ),
        (
            two().with_alibi(Slopes::PerSequence),
            inputs().alibi_slopes(&data[..2]),
            "alibi_slopes has 2 elements, the problem needs 4",
        ),
        (two().with_sinks(), inputs(), "sinks has 0 elements, the problem needs 2"),
        (two(), inputs().sinks(&data[..2]), "sinks was given, but the plan does not use it"),
        (per_sequence(), inputs(), "diag_offsets has 0 elements, the problem needs 2"),
        (
            two(),
            inputs().diag_offsets(&[1, 2]),
            "diag_offsets was given, but the plan does not use it",
        ),
        (
            two().with_lengths(true, false),
            inputs().q_lens(&[1]),
            "q_lens has 1 elements, the problem needs 2",
        ),
        (
            two().with_lengths(true, true),
            inputs().q_lens(&[1, 3]).kv_lens(&[3, 4]),
            "kv_lens[1] is 4, at most 3 fit",
        ),
        (two(), inputs().kv_lens(&[1, 1]), "kv_lens was given, but the plan does not use it"),
        (
            packed(),
            inputs().cu_seqlens_q(&[1, 2, 3]).cu_seqlens_k(&[0, 2, 3]),
            "cu_seqlens_q[0] is 1, needed is 0",
        ),
        (
            packed(),
            inputs().cu_seqlens_q(&[0, 3, 3]).cu_seqlens_k(&[0, 2, 4]),
            "cu_seqlens_k[2] is 4, needed is 3, the tokens in all",
        ),
        (
            Problem::packed(Shape::self_attention(3, 2, 3, 4)),
            inputs().cu_seqlens_q(&[0, 2, 1, 3]).cu_seqlens_k(&[0, 0, 0, 3]),
            "cu_seqlens_q[2] is 1, needed is at least 2",
        ),
        (
            packed(),
            inputs().cu_seqlens_q(&[0, 3]).cu_seqlens_k(&[0, 3]),
            "cu_seqlens_q has 2 elements, the problem needs 3",
        ),
        (two(), inputs().buffer("table", &[1]), "table was given, but the plan does not use it"),
    ] {
        says(Runner::cpu().forward(&problem, &inputs), message);
    }
}

/// Refused on a device whose limits `change` lowers.
fn limited(problem: &Problem, algorithm: Algorithm, change: fn(&mut wgpu::Limits), message: &str) {
    let mut capabilities = Capabilities::portable();
    change(&mut capabilities.limits);
    says(Plan::new(problem, &capabilities, algorithm), message);
}

#[test]
fn devices_too_small_are_refused_by_the_limit() {
    let problem = Problem::new(Shape::self_attention(1, 8, 200, 64));
    for (algorithm, change, message) in [
        (
            Algorithm::Flash,
            (|l| l.max_compute_workgroup_storage_size = 8192) as fn(&mut wgpu::Limits),
            "flash_tile needs max_compute_workgroup_storage_size >= 15872, the device has 8192",
        ),
        (
            Algorithm::Staged,
            |l| l.max_compute_workgroup_storage_size = 4096,
            "scores needs max_compute_workgroup_storage_size >= 15360, the device has 4096",
        ),
        (
            Algorithm::Staged,
            |l| l.max_compute_invocations_per_workgroup = 64,
            "scores needs max_compute_invocations_per_workgroup >= 256, the device has 64",
        ),
        (
            Algorithm::Staged,
            |l| l.max_compute_workgroup_size_x = 128,
            "scores needs max_compute_workgroup_size_x >= 256, the device has 128",
        ),
        (
            Algorithm::Flash,
            |l| l.max_storage_buffers_per_shader_stage = 3,
            "flash_tile needs max_storage_buffers_per_shader_stage >= 4, the device has 3",
        ),
        (
            Algorithm::Staged,
            |l| l.max_compute_workgroups_per_dimension = 3,
            "scores needs 64 workgroups, at most 9 can be counted",
        ),
    ] {
        limited(&problem, algorithm, change, message);
    }
}

#[test]
fn rows_too_long_for_a_binding_are_refused() {
    let small: fn(&mut wgpu::Limits) = |l| l.max_storage_buffer_binding_size = 4096;
    let wide =
        |dim, v_dim| Problem::new(Shape::self_attention(1, 1, 70, dim).with_v_head_dim(v_dim));
    let long = |kv_len, dim| Problem::new(Shape::cross_attention(1, 1, 2, kv_len, dim));
    for (problem, algorithm, what, required) in [
        (wide(1024, 4), Algorithm::Flash, "one row of q", 4096),
        (wide(4, 1024), Algorithm::Flash, "one key tile of v", 262_144),
        (wide(64, 4), Algorithm::Staged, "one key tile of k", 16384),
        (long(2000, 4), Algorithm::Staged, "one row of scores", 8000),
        (long(2000, 4).with_weights(), Algorithm::Auto, "one row of weights", 8000),
        (long(8192, 15), Algorithm::Flash, "one row of partial results", 7680),
        (long(0, 1024), Algorithm::Auto, "one row of out", 4096),
    ] {
        // A slice may start up to an alignment before what is bound.
        let required = required + 256;
        let message = format!(
            "{what} needs max_storage_buffer_binding_size >= {required}, the device has 4096"
        );
        limited(&problem, algorithm, small, &message);
    }
}

struct Host {
    device: wgpu::Device,
    queue: wgpu::Queue,
    attention: Attention,
}

impl Host {
    fn new(required_limits: wgpu::Limits) -> Self {
        let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
        let (device, queue) = wgpu::Device::noop(&descriptor);
        let attention = Attention::new(&device).with_class(DeviceClass::Hardware);
        Self { device, queue, attention }
    }

    fn buffer(&self, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        let (label, mapped_at_creation) = (None, false);
        let descriptor = wgpu::BufferDescriptor { label, size: 1024, usage, mapped_at_creation };
        self.device.create_buffer(&descriptor)
    }

    fn refuses(&self, plan: &Plan, tensors: &Tensors<'_>, wanted: &BindError, message: &str) {
        let error = says(self.attention.bind(plan, tensors), message);
        assert_eq!(error, *wanted);
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused() {
    let host = Host::new(wgpu::Limits::default());
    let plan = |problem: Problem, algorithm| {
        host.attention.plan_with(&problem, algorithm).expect("a plan")
    };
    let staged = plan(square().with_lse(), Algorithm::Staged);
    let flash = plan(square(), Algorithm::Flash);
    let [q, k, v, out, lse] = [(); 5].map(|()| host.buffer(wgpu::BufferUsages::STORAGE));
    let all = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    let with_lse = all.clone().lse(lse.slice(..));
    for plan in [&staged, &plan(square().with_lse(), Algorithm::Flash)] {
        assert!(host.attention.bind(plan, &with_lse).is_ok());
        let missing = BindError::Missing { tensor: "lse".into() };
        host.refuses(plan, &all, &missing, "lse is missing");
    }
    host.refuses(
        &flash,
        &with_lse,
        &BindError::Unused { tensor: "lse".into() },
        "lse was given, but the plan does not use it",
    );
    let given = all.clone().w_o(lse.slice(..));
    let unused = BindError::Unused { tensor: "w_o".into() };
    host.refuses(&flash, &given, &unused, "w_o was given, but the plan does not use it");

    // 1 x 2 x 3 x 4 elements are 96 bytes; lse is 24; scores are 2 x 3 rows of 16 bytes.
    assert!(host.attention.bind(&flash, &all.clone().out(out.slice(..96))).is_ok());
    for (tensors, tensor, required, actual) in [
        (with_lse.clone().k(k.slice(..92)), "k", 96, 92),
        (with_lse.clone().out(out.slice(1024 - 95..)), "out", 96, 95),
        (with_lse.clone().lse(lse.slice(4..24)), "lse", 24, 20),
        (with_lse.clone().workspace(v.slice(512..512 + 255)), "workspace", 256, 255),
    ] {
        let wanted = BindError::TooSmall { tensor: tensor.into(), required, actual };
        let message = format!("{tensor} is {actual} bytes, the problem needs {required}");
        host.refuses(&staged, &tensors, &wanted, &message);
    }

    let copied = host.buffer(wgpu::BufferUsages::COPY_DST);
    for (tensors, tensor) in [
        (with_lse.clone().v(copied.slice(..)), "v"),
        (with_lse.clone().workspace(copied.slice(..)), "workspace"),
    ] {
        let wanted =
            BindError::MissingUsage { tensor: tensor.into(), missing: wgpu::BufferUsages::STORAGE };
        let message = format!("{tensor} was created without BufferUsages(STORAGE)");
        host.refuses(&staged, &tensors, &wanted, &message);
    }
    for (tensors, tensor, offset) in [
        (with_lse.clone().q(q.slice(2..)), "q", 2),
        (with_lse.clone().lse(lse.slice(7..)), "lse", 7),
        (
            with_lse.clone().workspace(host.buffer(wgpu::BufferUsages::STORAGE).slice(1..)),
            "workspace",
            1,
        ),
    ] {
        let wanted = BindError::Misaligned { tensor: tensor.into(), offset, alignment: 4 };
        let message =
            format!("{tensor} starts at byte {offset}, not a multiple of its element's 4");
        host.refuses(&staged, &tensors, &wanted, &message);
    }
    for (tensors, output, other) in [
        (with_lse.clone().out(q.slice(92..)), "out", "q"),
        (with_lse.clone().k(out.slice(..)), "out", "k"),
        (with_lse.clone().lse(out.slice(..)), "lse", "out"),
        (with_lse.clone().workspace(q.slice(..)), "workspace", "q"),
        (with_lse.clone().workspace(out.slice(..)), "out", "workspace"),
    ] {
        let wanted = BindError::Overlap { output: output.into(), other: other.into() };
        host.refuses(&staged, &tensors, &wanted, &format!("{output} overlaps {other}"));
    }
    let beside = with_lse.clone().k(q.slice(..)).v(q.slice(4..)).out(q.slice(100..));
    assert!(
        host.attention.bind(&staged, &beside).is_ok(),
        "inputs may overlap, outputs lie beside"
    );
}

#[test]
fn buffers_that_bind_would_make_are_held_to_the_limit() {
    let nowhere = strides(0, 0, 0);
    let host = Host::new(wgpu::Limits::default());
    let [q, k, v, out] = [(); 4].map(|()| host.buffer(wgpu::BufferUsages::STORAGE));
    let all = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    // One row of scores, planned for a device that has more.
    let problem = Problem::new(Shape::cross_attention(1, 1, 1, 1 << 27, 4));
    let mut capabilities = Capabilities::portable();
    capabilities.limits.max_buffer_size = 1 << 30;
    capabilities.limits.max_storage_buffer_binding_size = 1 << 30;
    let problem = problem.k_strides(nowhere).v_strides(nowhere);
    let plan = Plan::new(&problem, &capabilities, Algorithm::Staged).expect("a plan");
    let (required, available) = (1 << 29, 1 << 28);
    let wanted = BindError::BufferTooLarge { what: "the workspace".into(), required, available };
    let message = "the workspace needs max_buffer_size >= 536870912, the device has 268435456";
    host.refuses(&plan, &all, &wanted, message);

    // Twenty-four steps of 512 bytes each: two ranges of keys and their merge for each 32 rows.
    let tiny = wgpu::Limits { max_buffer_size: 1024, ..Default::default() };
    let host = Host::new(tiny);
    let [q, k, v, out] = [(); 4].map(|()| host.buffer(wgpu::BufferUsages::STORAGE));
    let all = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    let problem = Problem::new(Shape::cross_attention(1, 1, 256, 256, 1));
    let plan = host.attention.plan_with(&problem, Algorithm::Flash).expect("a plan");
    assert_eq!(plan.kernels().count(), 24, "{plan}");
    let wanted = BindError::BufferTooLarge {
        what: "the uniform buffer".into(),
        required: 12288,
        available: 1024,
    };
    let message = "the uniform buffer needs max_buffer_size >= 12288, the device has 1024";
    host.refuses(&plan, &all, &wanted, message);
}

#[test]
fn downloads_that_fail_are_refused() {
    let element = DownloadError::Element { bytes: 10, element: 4 };
    assert_eq!(element.to_string(), "10 bytes are not a whole number of 4-byte elements");
    let host = Host::new(wgpu::Limits::default());
    let buffer = host.buffer(wgpu::BufferUsages::COPY_SRC);
    let mut encoder = host.device.create_command_encoder(&Default::default());
    let download = Download::encode(&host.device, &mut encoder, buffer.slice(..));
    drop(encoder);
    let error = says(pollster::block_on(download.read::<f32>()), "the encoder was never submitted");
    assert_eq!(error, DownloadError::NotSubmitted);

    let mut encoder = host.device.create_command_encoder(&Default::default());
    let download = Download::encode(&host.device, &mut encoder, buffer.slice(..));
    let commands = encoder.finish();
    host.device.destroy();
    host.queue.submit([commands]);
    let _ = host.device.poll(wgpu::PollType::wait_indefinitely());
    let read = pollster::block_on(download.read::<f32>());
    let why = "Error occurred when trying to async map a buffer";
    let error = says(read, &format!("mapping the download buffer failed: {why}"));
    assert_eq!(error, DownloadError::Map(why.to_owned()));
}

#[test]
fn binding_on_a_lost_device_leaves_it_to_the_error_handler() {
    let host = Host::new(wgpu::Limits::default());
    let [q, k, v, out] = [(); 4].map(|()| host.buffer(wgpu::BufferUsages::STORAGE));
    let all = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    host.device.destroy();
    let scope = host.device.push_error_scope(wgpu::ErrorFilter::Validation);
    for algorithm in [Algorithm::Staged, Algorithm::Flash] {
        let plan = host.attention.plan_with(&square(), algorithm).expect("a plan");
        let _ = host.attention.bind(&plan, &all);
    }
    drop(pollster::block_on(scope.pop()));
}

#[test]
fn layers_that_mean_nothing_are_refused() {
    for (model_dim, heads) in [(10, 3), (8, 0)] {
        let message = format!("heads ({heads}) does not divide model_dim ({model_dim})");
        let error = says(SelfAttention::new(1, 3, model_dim, heads), &message);
        assert_eq!(error, ProblemError::UnevenHeads { model_dim, heads });
    }
    let layer = SelfAttention::new(1, 3, 8, 2).expect("even heads");
    let mut uneven = layer;
    uneven.shape.kv_len = 5;
    let empty = SelfAttention::new(1, 3, 0, 2).expect("0 is even").with_heads(2, 2, 4, 4);
    for (layer, message) in [
        (empty, "model_dim is zero"),
        (layer.with_context(3, 0), "context_dim is zero"),
        (layer.with_out_dim(0), "out_dim is zero"),
        (layer.with_heads(2, 2, 0, 4), "head_dim is zero"),
        (layer.with_heads(2, 3, 4, 4), "kv_heads (3) does not divide heads (2)"),
        (layer.scale(f32::NAN), "scale (NaN) is not finite"),
        (
            layer.packed().with_context(3, 8),
            "w_qkv cannot be packed where keys and values come from a context",
        ),
        (uneven, "self-attention has as many keys as queries, not q_len 3 and kv_len 5"),
    ] {
        says(layer.validate(), message);
        let host = Host::new(wgpu::Limits::default());
        assert!(matches!(says(host.attention.plan_layer(&layer), message), PlanError::Problem(_)));
        let ran = Runner::cpu().layer(&layer, Algorithm::Auto, &LayerInputs::default());
        says(ran, message);
    }
}

#[test]
fn layer_buffers_are_asked_for_by_name() {
    let host = Host::new(wgpu::Limits::default());
    let layer = SelfAttention::new(1, 3, 8, 2).expect("even heads").with_biases();
    let [a, out] = [(); 2].map(|()| host.buffer(wgpu::BufferUsages::STORAGE));
    let given = Tensors::default().x(a.slice(..)).out(out.slice(..)).w_o(a.slice(..));
    let split = given.clone().w_q(a.slice(..)).w_k(a.slice(..)).w_v(a.slice(..));
    let cross = split.clone().b_q(a.slice(..)).b_k(a.slice(..)).b_v(a.slice(..)).b_o(a.slice(..));
    for (layer, tensors, tensor) in [
        (layer, &given, "w_q"),
        (layer, &split, "b_q"),
        (layer.packed(), &given, "w_qkv"),
        (layer.with_context(3, 8), &cross, "context"),
    ] {
        let plan = host.attention.plan_layer(&layer).expect("a plan");
        let message = format!("{tensor} is missing");
        host.refuses(&plan, tensors, &BindError::Missing { tensor: tensor.into() }, &message);
    }
    let plan = host.attention.plan_layer(&layer.packed()).expect("a plan");
    let packed = given.w_qkv(a.slice(..)).b_qkv(a.slice(..)).b_o(a.slice(..));
    assert!(host.attention.bind(&plan, &packed).is_ok());
    let unused = BindError::Unused { tensor: "w_q".into() };
    let message = "w_q was given, but the plan does not use it";
    host.refuses(&plan, &packed.w_q(a.slice(..)), &unused, message);
}

#[test]
fn a_seed_is_asked_for_where_weights_are_dropped() {
    let host = Host::new(wgpu::Limits::default());
    let [a, out] = [(); 2].map(|()| host.buffer(wgpu::BufferUsages::STORAGE));
    let given = Tensors::new(a.slice(..), a.slice(..), a.slice(..), out.slice(..));
    let plan = |problem: Problem| host.attention.plan(&problem).expect("a plan");
    for (problem, tensor) in
        [(square().with_dropout(0.5), "seed"), (square().with_given_dropout(0.5), "keep")]
    {
        let message = format!("{tensor} is missing");
        let missing = BindError::Missing { tensor: tensor.into() };
        host.refuses(&plan(problem), &given, &missing, &message);
    }
    let none = plan(square().with_dropout(0.0));
    assert!(host.attention.bind(&none, &given).is_ok(), "nothing reads it");
    let seeded = given.clone().seed(a.slice(..));
    assert!(host.attention.bind(&none, &seeded).is_ok(), "it may be there");
    let unused = |tensor: &'static str| BindError::Unused { tensor: tensor.into() };
    let message = "seed was given, but the plan does not use it";
    host.refuses(&plan(square()), &seeded, &unused("seed"), message);
    let message = "keep was given, but the plan does not use it";
    host.refuses(
        &plan(square().with_dropout(0.5)),
        &seeded.keep(a.slice(..)),
        &unused("keep"),
        message,
    );
}

#[test]
fn host_slices_of_other_lengths_are_refused() {
    let (cpu, data) = (Runner::cpu(), [0.0; 64]);
    let inputs = |q, k, v| Inputs::new(&data[..q], &data[..k], &data[..v]);
    for (inputs, tensor, actual) in
        [(inputs(23, 24, 24), "q", 23), (inputs(24, 0, 24), "k", 0), (inputs(24, 24, 20), "v", 20)]
    {
        let message = format!("{tensor} has {actual} elements, the problem needs 24");
        let error = says(cpu.forward(&square(), &inputs), &message);
        assert_eq!(error, Error::Length { tensor: tensor.into(), required: 24, actual });
    }
    assert!(cpu.forward(&square(), &inputs(64, 64, 24)).is_ok(), "a view may be longer");

    let layer = SelfAttention::new(1, 3, 4, 2).expect("even heads");
    let (x, w) = (&data[..12], &data[..16]);
    let right = LayerInputs { x, w_q: w, w_k: w, w_v: w, w_o: w, ..Default::default() };
    assert!(cpu.layer(&layer, Algorithm::Auto, &right).is_ok());
    for (layer, inputs, message) in [
        (layer, LayerInputs { x: &data[..13], ..right }, "x has 13 elements, the problem needs 12"),
        (layer, LayerInputs { w_o: x, ..right }, "w_o has 12 elements, the problem needs 16"),
        (layer, LayerInputs { w_qkv: w, ..right }, "w_qkv has 16 elements, the problem needs 0"),
        (layer, LayerInputs { b_k: x, ..right }, "b_k has 12 elements, the problem needs 0"),
        (
            layer,
            LayerInputs { context: x, ..right },
            "context has 12 elements, the problem needs 0",
        ),
        (layer.with_biases(), right, "b_q has 0 elements, the problem needs 4"),
        (layer.packed(), right, "w_q has 16 elements, the problem needs 0"),
        (layer.with_context(5, 4), right, "context has 0 elements, the problem needs 20"),
    ] {
        let error = says(cpu.layer(&layer, Algorithm::Auto, &inputs), message);
        assert!(matches!(error, Error::Length { .. }), "{error:?}");
    }
}

/// A runner on the no-op device: whatever goes wrong there is an error too.
fn noop(options: RunnerOptions) -> Runner {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::NOOP,
        backend_options: wgpu::BackendOptions {
            noop: wgpu::NoopBackendOptions::enabled(),
            ..Default::default()
        },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()));
    pollster::block_on(Runner::on_adapter(adapter.expect("no-op"), options)).expect("a device")
}

#[test]
fn a_runner_on_a_lost_device_says_so() {
    let data = [0.0; 24];
    let inputs = Inputs::new(&data, &data, &data);
    let runner = noop(RunnerOptions::default());
    assert!(runner.forward(&square(), &inputs).is_ok());
    let far = strides(24, 1 << 58, 4);
    let error = runner.forward(&square().out_strides(far), &inputs).expect_err("too large");
    let (required, available) = ((1 << 60) + 48, (1 << 31) - 1);
    assert_eq!(
        error,
        Error::Bind(BindError::BufferTooLarge { what: "out".into(), required, available })
    );
    assert!(runner.forward(&square(), &inputs).is_ok(), "and runs on");

    runner.device().expect("a device").0.destroy();
    let error = runner.forward(&square(), &inputs).expect_err("destroyed");
    assert!(matches!(error, Error::DeviceLost(_)), "{error:?}");
    assert!(error.to_string().starts_with("the device was lost: Destroyed"), "{error}");
}

#[test]
fn an_adapter_that_is_not_there_is_an_error() {
    let mut options = RunnerOptions::default();
    options.adapter = Some("no such card".to_owned());
    let error = Runner::with_options(options).expect_err("no such adapter");
    let Error::NoAdapter(why) = &error else { panic!("{error:?}") };
    assert!(why == "none was found" || why.ends_with("] is named \"no such card\""), "{why}");
    assert_eq!(error.to_string(), format!("no adapter: {why}"));
}

#[test]
#[cfg(feature = "cpu")]
fn the_cpu_path_refuses_what_the_kernels_refuse() {
    let problem = Problem::new(Shape::self_attention(1, 1, 2, 4));
    let x = [0.0; 8];
    let refused = |problem: &Problem, algorithm| {
        let inputs = Inputs::new(&x, &x, &x);
        let runner = Runner::cpu();
        runner.forward_with(problem, algorithm, &inputs).expect_err("refused").to_string()
    };
    assert_eq!(
        refused(&problem.clone().with_scores(ScoreStage::Raw), Algorithm::Split),
        "split does not give scores"
    );
    assert_eq!(
        refused(&problem.clone().with_weights(), Algorithm::Flash),
        "flash does not give weights"
    );
    assert_eq!(
        refused(&problem.with_given_dropout(0.5), Algorithm::Auto),
        "keep has 0 elements, the problem needs 4"
    );
}
