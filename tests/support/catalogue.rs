//! The named problems.
//!
//! Software GPUs take seconds to compile a kernel and milliseconds to run it, so problems share head sizes: 16
//! unless the size is the point.

use super::case::Case;
use std::io::Write as _;
use wgpu_attention::{Diagonal, Layout, Mask, Problem, Shape, Strides};

/// Every problem, or with `WGPU_ATTENTION_TEST=small` the small ones.
pub(crate) fn catalogue() -> Vec<Case> {
    if super::small() { small() } else { full() }
}

/// Every kernel family and every feature once, in as few kernels as that takes; wide heads only in `full`.
const SMALL: [&str; 17] = [
    "gqa_3",
    "mqa",
    "cross",
    "odd",
    "window",
    "bottom_right_long",
    "top_left",
    "no_row_sees_a_key",
    "narrow_1",
    "packed_qkv",
    "gapped",
    "scale_negative",
    "no_key",
    "no_query",
    "weights",
    "weights_odd",
    "weights_empty_rows",
];

static SAID: std::sync::Once = std::sync::Once::new();

/// The problems for slow software GPUs.
pub(crate) fn small() -> Vec<Case> {
    let (cases, left_out): (Vec<_>, Vec<_>) =
        full().into_iter().partition(|case| SMALL.contains(&case.name.as_str()));
    assert_eq!(cases.len(), SMALL.len(), "a name that is not in the catalogue");
    SAID.call_once(|| {
        let names: Vec<_> = left_out.iter().map(|case| case.name.as_str()).collect();
        // Past the test runner, which would keep it to itself.
        let _ = writeln!(
            std::io::stderr(),
            "small catalogue: left out, for the seconds that their kernels take to compile: {}",
            names.join(", ")
        );
    });
    cases
}

/// Every problem.
pub(crate) fn full() -> Vec<Case> {
    [models(), masks(), shapes(), layouts(), edges(), weights()].concat()
}

fn full_mask(shape: Shape) -> Problem {
    Problem::new(shape)
}

fn causal(shape: Shape) -> Problem {
    Problem::new(shape).mask(Mask::CAUSAL)
}

fn masked(shape: Shape, mask: Mask) -> Problem {
    Problem::new(shape).mask(mask)
}

const fn square(batch: u32, heads: u32, len: u32, dim: u32) -> Shape {
    Shape::self_attention(batch, heads, len, dim)
}

const fn cross(heads: u32, q_len: u32, kv_len: u32, dim: u32) -> Shape {
    Shape::cross_attention(1, heads, q_len, kv_len, dim)
}

/// As models have them, in small.
fn models() -> Vec<Case> {
    let gqa_3 = square(1, 6, 83, 16).with_kv_heads(2);
    let gqa_7 = Shape::cross_attention(2, 14, 29, 101, 64).with_kv_heads(2);
    vec![
        Case::new("bert", full_mask(square(2, 3, 101, 64)).with_lse()),
        Case::new("gpt2", causal(square(1, 4, 161, 32))).sharp(16.0),
        Case::new("llama", causal(square(1, 6, 70, 128).with_kv_heads(2)).with_lse()).sharp(8.0),
        Case::new("llama_decode", causal(cross(8, 1, 513, 64).with_kv_heads(2)).with_lse()),
        Case::new("gqa_3", causal(gqa_3).with_lse()).sharp(20.0),
        Case::new("gqa_7", full_mask(gqa_7).with_lse()).sharp(8.0),
        Case::new("mqa", causal(square(2, 5, 67, 16).with_kv_heads(1))),
        Case::new("cross", full_mask(cross(4, 13, 307, 16)).with_lse()).sharp(30.0),
    ]
}

/// Every kind of band along every kind of diagonal.
fn masks() -> Vec<Case> {
    let band = |left, right| masked(square(1, 2, 151, 16), Mask::band(left, right));
    let along = |q_len, kv_len, mask: Mask, diagonal| {
        masked(cross(2, q_len, kv_len, 16), mask.along(diagonal)).with_lse()
    };
    vec![
        Case::new("window", masked(square(1, 2, 199, 16), Mask::window(17)).with_lse()).sharp(16.0),
        Case::new("window_of_one", masked(square(1, 2, 70, 16), Mask::window(0)).with_lse()),
        Case::new("band", band(Some(9), Some(5)).with_lse()).sharp(12.0),
        Case::new("left_only", band(Some(30), None)),
        Case::new("right_only", band(None, Some(41))).sharp(8.0),
        Case::new("top_left", along(61, 113, Mask::CAUSAL, Diagonal::TopLeft)).sharp(9.0),
        Case::new("top_left_long", along(113, 61, Mask::window(20), Diagonal::TopLeft)),
        Case::new("bottom_right_short", along(37, 191, Mask::CAUSAL, Diagonal::BottomRight))
            .sharp(16.0),
        Case::new("bottom_right_long", along(131, 37, Mask::CAUSAL, Diagonal::BottomRight)),
        Case::new("offset_up", along(90, 90, Mask::CAUSAL, Diagonal::Offset(29))).sharp(8.0),
        Case::new(
            "offset_down",
            along(90, 90, Mask::band(Some(3), Some(8)), Diagonal::Offset(-40)),
        ),
        Case::new("offset_far_up", along(41, 43, Mask::CAUSAL, Diagonal::Offset(i32::MAX))),
        Case::new("no_row_sees_a_key", along(41, 43, Mask::CAUSAL, Diagonal::Offset(i32::MIN))),
        Case::new("before_all_keys", along(70, 43, Mask::window(5), Diagonal::Offset(-60))),
        Case::new("past_all_keys", along(70, 43, Mask::window(5), Diagonal::Offset(20))),
        Case::new("widest_band", band(Some(u32::MAX), Some(u32::MAX)).with_lse()),
    ]
}

/// Sizes that no tile likes.
fn shapes() -> Vec<Case> {
    let wide = |dim, v_dim| cross(2, 67, 71, dim).with_v_head_dim(v_dim);
    let narrow = |dim, v_dim| Shape::cross_attention(2, 3, 71, 53, dim).with_v_head_dim(v_dim);
    let odd = Shape::cross_attention(3, 5, 67, 131, 37).with_v_head_dim(41);
    vec![
        Case::new("odd", causal(odd).with_lse()).sharp(12.0),
        Case::new("wide_192", causal(wide(192, 128)).with_lse()).sharp(8.0),
        Case::new("wide_260", full_mask(wide(260, 192)).with_lse()),
        Case::new("narrow_1", full_mask(narrow(1, 1)).with_lse()).sharp(30.0),
        Case::new("narrow_2", causal(narrow(2, 3))).sharp(10.0),
        Case::new("narrow_3", full_mask(narrow(3, 5))),
        Case::new("narrow_5", causal(narrow(5, 2)).with_lse()).sharp(20.0),
        Case::new("long", causal(cross(1, 301, 1031, 16))).sharp(16.0),
        Case::new("many_keys", full_mask(cross(2, 3, 4099, 16)).with_lse()),
    ]
}

/// The same tensors laid out in other ways.
fn layouts() -> Vec<Case> {
    let shape = square(2, 6, 47, 16).with_kv_heads(2);
    let strided = |batch, head, row| Strides { batch, head, row };
    let shared = Shape::cross_attention(3, 2, 33, 65, 16);
    vec![
        Case::new("bshd", full_mask(square(2, 3, 71, 64)).layout(Layout::Bshd).with_lse())
            .sharp(8.0),
        Case::new("bshd_odd", {
            causal(square(2, 3, 43, 37).with_v_head_dim(41)).layout(Layout::Bshd).with_lse()
        }),
        Case::new("packed_qkv", causal(shape).layout(Layout::PackedQkv).with_lse()).sharp(16.0),
        Case::new(
            "gapped",
            causal(square(2, 6, 47, 37).with_kv_heads(2).with_v_head_dim(41))
                .q_strides(strided(6 * 47 * 40, 47 * 40, 40))
                .k_strides(strided(2 * 50 * 38 + 7, 50 * 38, 38))
                .v_strides(strided(2 * 47 * 42, 42, 84))
                .out_strides(strided(6 * 48 * 44, 48 * 44, 44))
                .with_lse(),
        ),
        Case::new("shared_keys", {
            let keys = strided(0, 65 * 16, 16);
            full_mask(shared).k_strides(keys).v_strides(keys).with_lse()
        })
        .sharp(12.0),
        Case::new("one_key_repeated", causal(shared).k_strides(strided(32, 16, 0))),
        Case::new("heads_share_values", full_mask(shared).v_strides(strided(65 * 16, 0, 16))),
    ]
}

/// Where formulas and launches end.
fn edges() -> Vec<Case> {
    let (rows, lens) = (square(2, 3, 31, 16), |q_len, kv_len| cross(2, q_len, kv_len, 16));
    let many = |batch| full_mask(Shape::cross_attention(batch, 700, 1, 1, 4)).with_lse();
    let chunked = full_mask(Shape::cross_attention(1, 3, 3407, 3413, 4)).with_lse();
    vec![
        Case::new("scale_0", causal(rows).scale(0.0).with_lse()),
        Case::new("scale_negative", causal(rows).scale(-0.7).with_lse()).sharp(8.0),
        Case::new("scale_large", full_mask(rows).scale(100.0).with_lse()),
        Case::new("one_key", full_mask(lens(31, 1)).with_lse()).sharp(8.0),
        Case::new("one_query", full_mask(lens(1, 89)).with_lse()).sharp(8.0),
        Case::new("one_of_each", causal(lens(1, 1)).with_lse()),
        Case::new("no_key", full_mask(lens(31, 0)).with_lse()),
        Case::new("no_key_causal", causal(lens(31, 0))),
        Case::new("no_query", full_mask(lens(0, 31)).with_lse()),
        Case::new("no_sequence", causal(square(0, 2, 31, 16)).with_lse()),
        Case::new("more_workgroups_than_an_axis_has", many(100)),
        Case::new("more_workgroups_than_a_narrow_axis_has", many(1)),
        // More scores than the staged kernels hold at a time.
        Case::new("chunked", chunked).sharp(8.0),
    ]
}

/// With the weights themselves.
fn weights() -> Vec<Case> {
    let grouped = square(2, 6, 40, 16).with_kv_heads(2);
    let odd = Shape::cross_attention(2, 3, 45, 59, 37).with_v_head_dim(41);
    vec![
        Case::new("weights", full_mask(grouped).with_weights().with_lse()).sharp(8.0),
        Case::new("weights_causal", causal(square(1, 2, 131, 16)).with_weights()).sharp(16.0),
        Case::new("weights_odd", masked(odd, Mask::window(13)).with_weights().with_lse()),
        Case::new("weights_empty_rows", causal(cross(3, 50, 20, 16)).with_weights().with_lse()),
        Case::new("weights_no_key", full_mask(cross(2, 5, 0, 16)).with_weights()),
    ]
}
