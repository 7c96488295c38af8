//! The caller's own functions: what they are told, what their mistakes give, and that none of them does harm.

#![cfg(feature = "cpu")]

use crate::device::{CLASSES, Gpu, bits, classes, poisoned};
use crate::support;
use crate::support::case::{Case, Tensors as Data, extent, rows};
use crate::support::judge::Answer;
use crate::support::target::Target;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use wgpu_attention::{
    Algorithm, BindError, BufferElement, Capabilities, DeviceClass, Diagonal, Error, Inputs, Mask,
    MaskFunction, Operand, Plan, PlanError, Problem, ProblemError, Runner, ScoreFunction,
    ScoreStage, Shape, Slopes, Tensors, wgpu,
};

static GPU: LazyLock<Gpu> = LazyLock::new(|| Gpu::new(|_| {}));

fn targets() -> impl Iterator<Item = Target> {
    let software = DeviceClass::Software;
    let few =
        [Target::Staged(software), Target::Flash(software), Target::Split(software), Target::Cpu];
    if support::small() { few.to_vec() } else { Target::ALL.to_vec() }.into_iter()
}

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Staged, Algorithm::Flash];

/// Two groups of heads, lengths that no tile likes, and more keys than queries.
const SHAPE: Shape = Shape::cross_attention(2, 4, 75, 110, 12).with_kv_heads(2);

type Words = Vec<(&'static str, Vec<u32>)>;

fn words(table: &[f32]) -> Vec<u32> {
    table.iter().map(|x| x.to_bits()).collect()
}

/// Numbers between -2 and 2.
fn table(len: usize) -> Vec<f32> {
    let mut random = support::random::Random::new(11);
    (0..len).map(|_| 2.0 * random.unit()).collect()
}

/// The same with the closures alone: inputs are made, and answers had, without any buffer of theirs.
fn closures(case: &Case) -> Case {
    let mut problem = case.problem.clone();
    if let Some(function) = problem.score_function.take() {
        let twin = move |s: f64, pair| function.apply(s, pair);
        problem = problem.with_score_function(ScoreFunction::new("closure", "", twin));
    }
    if let Some(function) = problem.mask_function.take() {
        let twin = move |pair| function.shows(pair);
        problem = problem.with_mask_function(MaskFunction::new("closure", "", twin));
    }
    Case { problem, ..case.clone() }
}

/// The inputs of a case, and what its functions read.
fn data(case: &Case, buffers: &Words) -> Data {
    let mut data = closures(case).tensors(0);
    let own = buffers.iter().map(|(name, words)| ((*name).to_owned(), words.clone()));
    data.extra.buffers = own.collect();
    data
}

/// Right by every algorithm with tiles of every class, and on the CPU path.
fn is_right(case: &Case, buffers: &Words) {
    agrees(case, &data(case, buffers), &Answer::of(&closures(case)));
}

fn agrees(case: &Case, data: &Data, answer: &Answer) {
    for target in targets().filter(|target| target.gives(&case.problem)) {
        let got = target.run(&case.name, &case.problem, data);
        answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    }
}

fn relative_position(heads: usize) -> (ScoreFunction, Words) {
    const TEXT: &str = "
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    let distance = clamp(i32(kv_pos) - i32(q_pos) - diagonal(batch), -20, 20);
    return s + distance_bias[head * 41u + u32(distance + 20)];
}
";
    let table = table(heads * 41);
    let own = vec![("distance_bias", words(&table))];
    let function = ScoreFunction::new("relative position", TEXT, move |s, pair| {
        let distance = i64::from(pair.kv_pos) - i64::from(pair.q_pos) - pair.diagonal;
        let at = usize::try_from(distance.clamp(-20, 20) + 20).expect("clamped");
        s + f64::from(table[pair.head as usize * 41 + at])
    });
    (function.with_buffer("distance_bias", BufferElement::F32), own)
}

fn documents(batch: usize, len: usize) -> (MaskFunction, Words) {
    let text = format!(
        "fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {{
    let first = batch * {len}u;
    return kv_pos <= q_pos && document[first + kv_pos] == document[first + q_pos];
}}"
    );
    // Other documents in every sequence.
    let id = |i: usize| u32::try_from(i % len / (17 + i / len * 6)).expect("small");
    let ids: Vec<u32> = (0..batch * len).map(id).collect();
    let own = vec![("document", ids.clone())];
    let function = MaskFunction::new("documents", &text, move |pair| {
        let id = |pos: u32| ids[pair.batch as usize * len + pos as usize];
        pair.kv_pos <= pair.q_pos && id(pair.kv_pos) == id(pair.q_pos)
    });
    (function.with_buffer("document", BufferElement::U32), own)
}

fn dilated() -> MaskFunction {
    const TEXT: &str = "
fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    let back = q_pos - kv_pos;
    return back < 48u && back % 3u == 0u;
}
";
    MaskFunction::new("dilated window", TEXT, |pair| {
        let back = pair.q_pos.wrapping_sub(pair.kv_pos);
        back < 48 && back.is_multiple_of(3)
    })
}

/// Windows of 4 x 3 on a grid of 12 x 9, and a bias by place in them.
fn image_windows(heads: usize) -> (MaskFunction, ScoreFunction, Words) {
    const MASK: &str = "
fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    let q = vec2<u32>(q_pos % 12u, q_pos / 12u) / vec2<u32>(4u, 3u);
    let kv = vec2<u32>(kv_pos % 12u, kv_pos / 12u) / vec2<u32>(4u, 3u);
    return all(q == kv);
}
";
    const SCORE: &str = "
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    let x = kv_pos % 4u + 3u - q_pos % 4u;
    let y = kv_pos / 12u % 3u + 2u - q_pos / 12u % 3u;
    return s + place_bias[(head * 5u + y) * 7u + x];
}
";
    let mask = MaskFunction::new("same window", MASK, |pair| {
        let window = |pos: u32| (pos % 12 / 4, pos / 12 / 3);
        window(pair.q_pos) == window(pair.kv_pos)
    });
    let table = table(heads * 35);
    let own = vec![("place_bias", words(&table))];
    let score = ScoreFunction::new("place in window", SCORE, move |s, pair| {
        let (q, kv) = (pair.q_pos, pair.kv_pos);
        let (x, y) = (kv % 4 + 3 - q % 4, kv / 12 % 3 + 2 - q / 12 % 3);
        s + f64::from(table[((pair.head * 5 + y) * 7 + x) as usize])
    });
    (mask, score.with_buffer("place_bias", BufferElement::F32), own)
}

#[test]
fn functions_of_the_usual_kinds_equal_the_definition() {
    let (score, own) = relative_position(4);
    let problem = Problem::new(SHAPE).with_score_function(score).with_lse();
    is_right(&Case::new("relative position", problem).sharp(8.0), &own);

    let (mask, own) = documents(2, 110);
    let square = Shape::self_attention(2, 4, 110, 24).with_kv_heads(2);
    let problem = Problem::new(square).with_mask_function(mask).with_lse();
    is_right(&Case::new("documents", problem).sharp(8.0), &own);

    let problem = Problem::new(SHAPE).with_mask_function(dilated()).with_lse();
    is_right(&Case::new("dilated window", problem).sharp(8.0), &Vec::new());

    let (mask, score, own) = image_windows(2);
    let image = Problem::new(Shape::self_attention(1, 2, 108, 16));
    let problem = image.with_mask_function(mask).with_score_function(score).with_lse();
    is_right(&Case::new("image windows", problem).sharp(8.0), &own);
}

#[test]
fn weights_and_scores_are_those_of_the_functions() {
    let (mask, own) = documents(2, 110);
    let (score, more) = relative_position(4);
    let square = Shape::self_attention(2, 4, 110, 24).with_kv_heads(2);
    let problem = Problem::new(square).with_mask_function(mask).with_score_function(score);
    let own = [own, more].concat();
    for stage in [ScoreStage::Raw, ScoreStage::Capped, ScoreStage::Biased] {
        let problem = problem.clone().softcap(3.0).with_weights().with_scores(stage);
        is_right(&Case::new("all that there is", problem), &own);
    }
}

#[test]
fn a_score_function_comes_after_cap_alibi_and_bias() {
    const TEXT: &str = "
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    return s * abs(s) - 0.5;
}
";
    let square = ScoreFunction::new("square", TEXT, |s, _| s * s.abs() - 0.5);
    let pairs = wgpu_attention::Pairs::new([1, 4, 75, 110]);
    let problem = Problem::new(SHAPE)
        .softcap(2.0)
        .with_alibi(Slopes::PerHead)
        .with_bias(wgpu_attention::DType::F32, pairs)
        .mask(Mask::CAUSAL)
        .with_sinks()
        .with_score_function(square)
        .with_mask_function(dilated());
    is_right(&Case::new("in order", problem), &Vec::new());
}

#[test]
fn two_functions_may_share_a_buffer() {
    const SCORE: &str = "
fn own_read(at: u32) -> f32 { return shared_table[at % arrayLength(&shared_table)]; }
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    return s + own_read(head * 7u + kv_pos);
}
";
    const MASK: &str = "
fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    return shared_table[(batch + q_pos * 3u + kv_pos) % 101u] > -1.0;
}
";
    let values = table(101);
    let own = vec![("shared_table", words(&values))];
    let (of_score, of_mask) = (values.clone(), values);
    let score = ScoreFunction::new("score of both", SCORE, move |s, pair| {
        s + f64::from(of_score[(pair.head * 7 + pair.kv_pos) as usize % 101])
    });
    let mask = MaskFunction::new("mask of both", MASK, move |pair| {
        of_mask[(pair.batch + pair.q_pos * 3 + pair.kv_pos) as usize % 101] > -1.0
    });
    let problem = Problem::new(SHAPE)
        .with_score_function(score.with_buffer("shared_table", BufferElement::F32))
        .with_mask_function(mask.with_buffer("shared_table", BufferElement::F32));
    is_right(&Case::new("both", problem.with_lse()).sharp(8.0), &own);
}

#[test]
fn buffers_of_every_element_type_are_read() {
    const TEXT: &str = "
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    return s + own_floats[kv_pos % 2u] + f32(own_signed[kv_pos % 3u]) + f32(own_bits[q_pos % 2u]);
}
";
    let own = vec![
        ("own_floats", words(&[0.25, -0.5])),
        ("own_signed", [-2_i32, 1, 3].map(i32::cast_unsigned).to_vec()),
        ("own_bits", vec![1, 4]),
    ];
    let score = ScoreFunction::new("three types", TEXT, |s, pair| {
        let (q, kv) = (pair.q_pos as usize, pair.kv_pos as usize);
        s + [0.25, -0.5][kv % 2] + [-2.0, 1.0, 3.0][kv % 3] + [1.0, 4.0][q % 2]
    })
    .with_buffer("own_floats", BufferElement::F32)
    .with_buffer("own_signed", BufferElement::I32)
    .with_buffer("own_bits", BufferElement::U32);
    let problem = Problem::new(SHAPE).with_score_function(score).with_lse();
    is_right(&Case::new("three types", problem), &own);
}

#[test]
fn loops_that_end_are_run_to_their_end() {
    const TEXT: &str = "
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    // A loop { in a comment, and for one more.
    var bits = 0u;
    for (var i = 0u; i < 8u; i++) {
        var rest = kv_pos >> i;
        while rest > 0u { rest = rest >> 4u; bits++; }
    }
    loop { if bits < 5u { break; } bits -= 5u; continuing { bits += 1u; } }
    return s - f32(bits);
}
";
    let score = ScoreFunction::new("loops", TEXT, |s, pair| {
        let mut bits: u32 = 0;
        for i in 0..8 {
            let mut rest = pair.kv_pos >> i;
            while rest > 0 {
                rest >>= 4;
                bits += 1;
            }
        }
        while bits >= 5 {
            bits -= 4;
        }
        s - f64::from(bits)
    });
    let problem = Problem::new(SHAPE).with_score_function(score).with_lse();
    is_right(&Case::new("loops", problem), &Vec::new());
}

#[test]
#[allow(unsafe_code, reason = "the text is vouched for")]
fn a_function_may_go_unchecked() {
    let (mask, own) = documents(2, 110);
    let (score, more) = relative_position(4);
    // SAFETY: every index is below the length of its table, and there are no loops.
    let (mask, score) = unsafe { (mask.unchecked(), score.unchecked()) };
    let square = Shape::self_attention(2, 4, 110, 24).with_kv_heads(2);
    let problem = Problem::new(square).with_mask_function(mask).with_score_function(score);
    is_right(&Case::new("unchecked", problem.with_lse()).sharp(8.0), &[own, more].concat());
}

/// Causal by its own means: no band hides anything.
fn own_causal() -> MaskFunction {
    const TEXT: &str = "
fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    return i32(kv_pos) - i32(q_pos) <= diagonal(batch);
}
";
    MaskFunction::new("causal", TEXT, |pair| {
        i64::from(pair.kv_pos) - i64::from(pair.q_pos) <= pair.diagonal
    })
}

/// Right where the same can be said without functions.
fn is_the_same(own: &Problem, plain: &Problem, buffers: impl Fn(&Data) -> Words) {
    let (case, named) =
        (Case::new("by a function", own.clone()), Case::new("plain", plain.clone()));
    let mut tensors = named.tensors(0);
    let all: Vec<_> = rows(&plain.tensor_shape()).collect();
    let answer = Answer::for_rows(named.to_string(), plain, &tensors, &all);
    let given = buffers(&tensors);
    tensors.extra.buffers =
        given.into_iter().map(|(name, words)| (name.to_owned(), words)).collect();
    if own.alibi.is_none() {
        tensors.extra.alibi_slopes.clear();
    }
    agrees(&case, &tensors, &answer);
}

#[test]
fn functions_are_told_where_the_diagonal_is() {
    let diagonals =
        [Diagonal::BottomRight, Diagonal::TopLeft, Diagonal::Offset(-9), Diagonal::PerSequence];
    let more_queries = Shape::cross_attention(6, 2, 60, 41, 16);
    for shape in [Shape::cross_attention(6, 2, 41, 60, 16), more_queries] {
        for diagonal in diagonals {
            for problem in [
                Problem::new(shape),
                Problem::new(shape).with_lengths(true, true),
                Problem::packed(shape),
            ] {
                let problem = problem.with_lse();
                let own = problem.clone().mask(Mask::FULL.along(diagonal));
                let plain = problem.mask(Mask::CAUSAL.along(diagonal));
                is_the_same(&own.with_mask_function(own_causal()), &plain, |_| Vec::new());
            }
        }
    }
}

#[test]
fn functions_are_told_the_query_head() {
    const TEXT: &str = "
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    let own = i32(q_pos) + diagonal(batch);
    return s - own_slopes[batch * 6u + head] * f32(abs(own - i32(kv_pos)));
}
";
    // Two groups of three heads.
    let shape = Shape::cross_attention(2, 6, 41, 60, 16).with_kv_heads(2);
    for problem in [Problem::new(shape), Problem::packed(shape)] {
        let plain = problem.clone().with_alibi(Slopes::PerSequence).with_lse();
        let tensors = Case::new("slopes", plain.clone()).tensors(0);
        let slopes = tensors.extra.alibi_slopes.clone();
        let score = ScoreFunction::new("alibi", TEXT, move |s, pair| {
            let at = i64::from(pair.q_pos) + pair.diagonal - i64::from(pair.kv_pos);
            #[allow(clippy::cast_precision_loss, reason = "small")]
            let distance = at.abs() as f64;
            s - f64::from(slopes[(pair.batch * 6 + pair.head) as usize]) * distance
        });
        let score = score.with_buffer("own_slopes", BufferElement::F32);
        let own = problem.with_score_function(score).with_lse();
        is_the_same(&own, &plain, |data| vec![("own_slopes", words(&data.extra.alibi_slopes))]);
    }
}

#[test]
fn positions_of_packed_sequences_count_from_0() {
    const SCORE: &str = "
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    return s + 0.5 * f32(q_pos % 5u) * f32(kv_pos % 3u) + own_table[batch];
}
";
    const MASK: &str = "
fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    return (q_pos + kv_pos) % 4u != 0u && kv_pos < 40u;
}
";
    let score = |first: usize| {
        ScoreFunction::new("positions", SCORE, move |s, pair| {
            let product = f64::from(pair.q_pos % 5) * f64::from(pair.kv_pos % 3);
            s + 0.5 * product + [0.5, -1.0, 2.0, 0.25, -3.0][pair.batch as usize + first]
        })
        .with_buffer("own_table", BufferElement::F32)
    };
    let mask = || {
        MaskFunction::new("places", MASK, |pair| {
            !(pair.q_pos + pair.kv_pos).is_multiple_of(4) && pair.kv_pos < 40
        })
    };
    let own = vec![("own_table", words(&[0.5, -1.0, 2.0, 0.25, -3.0]))];
    let shape = Shape::cross_attention(5, 4, 170, 190, 16).with_kv_heads(2);
    let functions = |problem: Problem, first| {
        problem.with_score_function(score(first)).with_mask_function(mask())
    };
    let problem = functions(Problem::packed(shape), 0).with_lse();
    let case = Case::new("packed", problem.clone());
    is_right(&case, &own);

    // The definition of all is that of each sequence by itself.
    let data = data(&case, &own);
    let (q_starts, kv_starts) = (&data.extra.cu_seqlens_q, &data.extra.cu_seqlens_k);
    for sequence in 0..5 {
        let [q, kv] = [q_starts, kv_starts].map(|starts| starts[sequence]..starts[sequence + 1]);
        let alone = Shape::cross_attention(1, 4, q.end - q.start, kv.end - kv.start, 16);
        let one = functions(Problem::new(alone.with_kv_heads(2)), sequence);
        let one = one.q_strides(problem.q).k_strides(problem.k).v_strides(problem.v);
        let from =
            |data: &'_ [f32], row: u32, heads: u32| data[(row * heads * 16) as usize..].to_vec();
        let [q_rows, k_rows, v_rows] =
            [from(&data.q, q.start, 4), from(&data.k, kv.start, 2), from(&data.v, kv.start, 2)];
        let inputs = Inputs::new(&q_rows, &k_rows, &v_rows);
        for head in 0..4 {
            for row in q.clone() {
                let all = wgpu_attention::reference::row(&problem, &data.inputs(), (0, head, row));
                let at = (0, head, row - q.start);
                let alone = wgpu_attention::reference::row(&one, &inputs, at);
                assert_eq!((all.out, all.lse), (alone.out, alone.lse), "{sequence}: {at:?}");
            }
        }
    }
}

fn score(name: &str, wgsl: &str) -> ScoreFunction {
    ScoreFunction::new(name, wgsl, |s, _| s)
}

fn mask(name: &str, wgsl: &str) -> MaskFunction {
    MaskFunction::new(name, wgsl, |_| true)
}

/// Refused by a plan of every algorithm: whose text it is, at which line, and something of what is wrong.
fn is_wrong_at(problem: &Problem, name: &str, line: usize, part: &str) {
    for class in classes() {
        let capabilities = Capabilities::portable().with_class(class);
        for algorithm in [Algorithm::Auto, Algorithm::Staged, Algorithm::Flash] {
            let error = Plan::new(problem, &capabilities, algorithm).expect_err("a mistake");
            let PlanError::Wgsl { name: found, line: at, message } = &error else {
                panic!("{algorithm:?}: {error:?}")
            };
            assert_eq!((&**found, *at), (name, line), "{algorithm:?}: {message}");
            assert!(message.contains(part), "{algorithm:?}: {message}");
            assert_eq!(error.to_string(), format!("{name}, line {line}: {message}"));
        }
    }
}

const GOOD_SCORE: &str = "fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    return s;
}
";

#[test]
fn mistakes_in_a_text_are_found_where_they_are() {
    let problem = Problem::new(SHAPE);
    let bad_mask = |body: &str| {
        format!("fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {{{body}}}")
    };
    let bad_score = |body: &str| {
        let arguments = "s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32";
        format!("fn score({arguments}) -> f32 {{{body}}}")
    };
    // Of a body's lines the first is that of the brace; GOOD is a value of the right type.
    for (body, line, part) in [
        ("\n    let x = 1.0;\n    let y = x +;\n    return GOOD;\n", 3, "expected"),
        ("\n    let x = 1.0\n    return GOOD;\n", 3, "expected"),
        ("\n    while true {\n        let x = nothing;\n    }\n    return GOOD;\n", 3, "nothing"),
        ("\n    for (;;) {\n        let x: u32 = 1.5;\n    }\n    return GOOD;\n", 3, "u32"),
        ("\n\n    let x = diagonal(1.5);\n    return GOOD;\n", 3, ""),
        // Found by the validator, not by the parser.
        ("\n    let x = 1.0;\n\n    let y = x + q_pos;\n    return GOOD;\n", 4, "Add"),
        ("\n    let x = 1;\n    return vec2<f32>();\n", 3, "return"),
        ("\n    let x = 1.0;\n    if x + 1.0 { return GOOD; }\n    return GOOD;\n", 3, ""),
    ] {
        let text = bad_score(&body.replace("GOOD", "s"));
        let bad = score("my score", &text);
        is_wrong_at(&problem.clone().with_score_function(bad), "my score", line, part);
        // After a text without a mistake, which does not end in a new line.
        let good = score("good", GOOD_SCORE.trim_end());
        let bad = mask("my mask", &bad_mask(&body.replace("GOOD", "true")));
        let both = problem.clone().with_score_function(good).with_mask_function(bad);
        is_wrong_at(&both, "my mask", line, part);
    }
    let unknown = mask("my mask", &bad_mask("\n\n    return own_table[q_pos] > 0.0;\n"));
    is_wrong_at(&problem.clone().with_mask_function(unknown), "my mask", 3, "own_table");
    let redefined = score("my score", &format!("{GOOD_SCORE}fn flat_id() {{}}\n"));
    is_wrong_at(&problem.clone().with_score_function(redefined), "my score", 4, "flat_id");
    // Where a text holds nothing that is called, the mistake is in the call.
    let nothing = score("empty", "// No function.\n");
    let problem = problem.with_score_function(nothing);
    let error = Plan::new(&problem, &Capabilities::portable(), Algorithm::Auto);
    let error = error.expect_err("no function");
    assert!(
        matches!(&error, PlanError::Wgsl { name, .. } if name == "score/function.wgsl"),
        "{error}"
    );
}

#[test]
fn names_of_functions_are_said_as_they_are() {
    let problem = Problem::new(SHAPE);
    for name in ["(mine)", "score(x)", "a/b", "", "two\nlines"] {
        let problem = problem.clone().with_score_function(score(name, "fn score() { return +; }"));
        is_wrong_at(&problem, name, 1, "expected");
    }
}

#[test]
fn a_text_may_only_use_what_every_device_has() {
    for (body, what) in [
        ("return s + f32(i64(q_pos));", "64-bit integers"),
        ("return s + f32(f64(s));", "64-bit floats"),
        ("return subgroupAdd(s);", "subgroups"),
    ] {
        let text = format!(
            "fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {{ {body} }}"
        );
        let problem = Problem::new(SHAPE).with_score_function(score(what, &text));
        let plan = Plan::new(&problem, &Capabilities::portable(), Algorithm::Auto);
        let error = plan.expect_err(what);
        assert!(matches!(&error, PlanError::Wgsl { name, .. } if name == what), "{error}");
    }
}

/// A mask function that reads buffers of these names.
fn reads(names: &[String]) -> MaskFunction {
    let sum: Vec<_> = names.iter().map(|name| format!("{name}[q_pos]")).collect();
    let text = format!(
        "fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {{
    return {} > 0.0;
}}",
        sum.join(" + ")
    );
    names.iter().fold(mask("reader", &text), |function, name| {
        function.with_buffer(name, BufferElement::F32)
    })
}

#[test]
fn buffers_past_what_a_device_binds_are_refused() {
    let portable = Capabilities::portable();
    assert_eq!(portable.limits.max_storage_buffers_per_shader_stage, 8);
    let names = |n: usize| (0..n).map(|i| format!("own_{i}")).collect::<Vec<_>>();
    let problem = |n| Problem::new(SHAPE).with_mask_function(reads(&names(n)));
    // Besides q, k, v, out and the classes; besides the scores alone.
    for (algorithm, most) in [(Algorithm::Flash, 3), (Algorithm::Staged, 7), (Algorithm::Auto, 7)] {
        let plan = Plan::new(&problem(most), &portable, algorithm);
        assert!(plan.is_ok(), "{algorithm:?}: {plan:?}");
        let error = Plan::new(&problem(most + 1), &portable, algorithm).expect_err("too many");
        let PlanError::LimitExceeded { limit, required, available, .. } = &error else {
            panic!("{algorithm:?}: {error:?}")
        };
        assert_eq!(*limit, "max_storage_buffers_per_shader_stage", "{algorithm:?}");
        assert!(*required > 8 && *available == 8, "{algorithm:?}: {error}");
        let said = error.to_string();
        assert!(said.contains(&required.to_string()) && said.contains("has 8"), "{said}");
    }
}

#[test]
fn two_types_of_one_buffer_are_refused() {
    let one = score("one", GOOD_SCORE).with_buffer("own", BufferElement::F32);
    let other = mask("other", "").with_buffer("own", BufferElement::U32);
    let problem = Problem::new(SHAPE).with_score_function(one).with_mask_function(other);
    let wanted = ProblemError::BufferTypes { buffer: "own".to_owned(), elements: ["f32", "u32"] };
    assert_eq!(problem.validate(), Err(wanted.clone()));
    assert_eq!(wanted.to_string(), "buffer own is declared as array<f32> and as array<u32>");
    let planned = Plan::new(&problem, &Capabilities::portable(), Algorithm::Auto);
    assert_eq!(planned, Err(wanted.clone().into()));
    let run = Runner::cpu().forward(&problem, &Inputs::new(&[], &[], &[]));
    assert_eq!(run, Err(Error::Problem(wanted)));
    // One function alone may contradict itself.
    let twice = score("twice", GOOD_SCORE).with_buffer("own", BufferElement::F32);
    let twice = twice.with_buffer("own", BufferElement::I32);
    assert!(Problem::new(SHAPE).with_score_function(twice).validate().is_err());
}

/// Small, with one buffer `own`.
fn reader() -> (Case, Words) {
    let shape = Shape::self_attention(1, 2, 20, 8);
    let problem = Problem::new(shape).with_mask_function(reads(&["own".to_owned()]));
    (Case::new("reader", problem), vec![("own", words(&[1.0; 20]))])
}

#[test]
fn buffers_in_host_memory_must_be_those_that_are_declared() {
    let (case, own) = reader();
    for target in targets() {
        let run = |own: &Words| target.try_run(&case.problem, &data(&case, own)).map(|_| ());
        assert_eq!(run(&own), Ok(()), "{target:?}");
        let missing = Error::Bind(BindError::Missing { tensor: "own".into() });
        assert_eq!(run(&Vec::new()), Err(missing), "{target:?}");
        let unused = Error::Bind(BindError::Unused { tensor: "other".into() });
        assert_eq!(
            run(&[own.clone(), vec![("other", vec![0])]].concat()),
            Err(unused),
            "{target:?}"
        );
        // Not one element: nothing that an index could be kept in.
        let small = BindError::TooSmall { tensor: "own".into(), required: 4, actual: 0 };
        assert_eq!(run(&vec![("own", Vec::new())]), Err(Error::Bind(small)), "{target:?}");
    }
}

#[test]
fn buffers_on_a_device_must_be_those_that_are_declared() {
    let (case, _) = reader();
    let inputs = data(&case, &Vec::new());
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|data| GPU.input(data));
    let alignment = u64::from(GPU.device.limits().min_storage_buffer_offset_alignment);
    let shared = GPU.output(4096);
    for (class, algorithm) in classes().flat_map(|c| ALGORITHMS.map(|a| (c, a))) {
        let attention = GPU.attention(class);
        let plan = attention.plan_with(&case.problem, algorithm).expect("a plan");
        let out = GPU.output(inputs.q.len());
        let tensors = || Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
        let refused =
            |tensors: Tensors<'_>| attention.bind(&plan, &tensors).expect_err("a mistake");
        assert_eq!(refused(tensors()), BindError::Missing { tensor: "own".into() });
        let good = || tensors().buffer("own", shared.slice(..80));
        assert_eq!(attention.bind(&plan, &good()).err(), None);
        let unused = BindError::Unused { tensor: "other".into() };
        assert_eq!(refused(good().buffer("other", shared.slice(..))), unused);
        let misaligned = BindError::Misaligned { tensor: "own".into(), offset: 4, alignment };
        assert_eq!(refused(good().buffer("own", shared.slice(4..84))), misaligned);
        let half = BindError::TooSmall { tensor: "own".into(), required: 4, actual: 2 };
        assert_eq!(refused(good().buffer("own", shared.slice(..2))), half);
        let aligned = good().buffer("own", shared.slice(alignment..alignment + 80));
        assert_eq!(attention.bind(&plan, &aligned).err(), None);
        let unusable = GPU.upload(&[0.0; 20], wgpu::BufferUsages::COPY_SRC);
        let unusable = refused(good().buffer("own", unusable.slice(..)));
        let missing = wgpu::BufferUsages::STORAGE;
        assert_eq!(unusable, BindError::MissingUsage { tensor: "own".into(), missing });
    }
}

#[test]
fn no_output_may_overlap_a_functions_buffer() {
    let (case, _) = reader();
    let inputs = data(&case, &Vec::new());
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|data| GPU.input(data));
    let shared = GPU.output(4096);
    let plan = GPU.attention(CLASSES[0]).plan(&case.problem).expect("a plan");
    let bind = |own, out| {
        let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out).buffer("own", own);
        GPU.attention(CLASSES[0]).bind(&plan, &tensors).err()
    };
    let overlap = Some(BindError::Overlap { output: "out".into(), other: "own".into() });
    let bytes = inputs.q.len() as u64 * 4;
    assert_eq!(bind(shared.slice(..80), shared.slice(1024..1024 + bytes)), None);
    assert_eq!(bind(shared.slice(1024..1104), shared.slice(1024..1024 + bytes)), overlap);
    // All of the slice is bound, not its first element alone.
    assert_eq!(bind(shared.slice(..2048), shared.slice(1024..1024 + bytes)), overlap);
}

#[test]
fn a_functions_buffer_may_lie_beside_the_tensors() {
    let (score, own) = relative_position(4);
    let case = Case::new("beside", Problem::new(SHAPE).with_score_function(score).with_lse());
    let (problem, inputs) = (&case.problem, data(&case, &own));
    let answer = Answer::of(&closures(&case));
    let table: Vec<f32> = own[0].1.iter().map(|word| f32::from_bits(*word)).collect();
    let out_len = extent(problem.out, [2, 4, 75], 12);
    for (class, algorithm) in classes().flat_map(|c| ALGORITHMS.map(|a| (c, a))) {
        // Outputs before and after it, in one buffer with q.
        let mut all = Vec::new();
        let parts = [poisoned(out_len), table.clone(), poisoned(600), inputs.q.clone()];
        let [out, own, lse, q] = parts.map(|part| {
            all.resize(all.len().next_multiple_of(64), f32::NAN);
            let first = all.len() as u64 * 4;
            all.extend(&part);
            first..all.len() as u64 * 4
        });
        let buffer = GPU.upload(&all, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC);
        let [k, v] = [&inputs.k, &inputs.v].map(|data| GPU.input(data));
        let attention = GPU.attention(class);
        let plan = attention.plan_with(problem, algorithm).expect("a plan");
        let part = |range: &std::ops::Range<u64>| buffer.slice(range.clone());
        let tensors = Tensors::new(part(&q), k.slice(..), v.slice(..), part(&out));
        let tensors = tensors.lse(part(&lse)).buffer("distance_bias", part(&own));
        GPU.run(&[&attention.bind(&plan, &tensors).expect("disjoint slices")]);
        let after = GPU.read(&buffer);
        let read = |range: &std::ops::Range<u64>| {
            let [from, to] =
                [range.start, range.end].map(|at| usize::try_from(at / 4).expect("small"));
            after[from..to].to_vec()
        };
        let got = support::emulation::Got {
            out: read(&out),
            lse: Some(read(&lse)),
            weights: None,
            scores: None,
        };
        answer.check(&got).unwrap_or_else(|error| panic!("{class:?}, {algorithm:?}: {error}"));
        assert_eq!(bits(&read(&own)), bits(&table), "{class:?}, {algorithm:?}");
    }
}

/// What a score function that hands out what it reads makes of a table amid poison: the scores, out and lse.
fn reading(index: &str, class_and: (DeviceClass, bool)) -> [Vec<f32>; 3] {
    let (class, flash) = class_and;
    let text = format!(
        "fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {{
    return {index};
}}"
    );
    let function = score("reader", &text).with_buffer("own", BufferElement::F32);
    let shape = Shape::cross_attention(1, 2, 40, 70, 8);
    let problem = Problem::new(shape).with_lse();
    let inputs = Case::new("plain", problem.clone()).tensors(0);
    let problem = problem.with_score_function(function);
    let (problem, algorithm) = if flash {
        (problem, Algorithm::Flash)
    } else {
        (problem.with_scores(ScoreStage::Biased), Algorithm::Staged)
    };
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|data| GPU.input(data));
    // Long enough that what is read past the table is in the buffer.
    let (first, total) = (256, 1_200_000);
    let mut all = poisoned(total);
    all[first..first + 64].copy_from_slice(&amid());
    let buffer = GPU.input(&all);
    let [out, lse, scores] =
        [2 * 40 * 8, 2 * 40, if flash { 1 } else { 2 * 40 * 70 }].map(|n| GPU.output(n));
    let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    let tensors = tensors.lse(lse.slice(..)).buffer("own", buffer.slice(1024..1024 + 256));
    let tensors = if flash { tensors } else { tensors.scores(scores.slice(..)) };
    let attention = GPU.attention(class);
    let plan = attention.plan_with(&problem, algorithm).expect("a plan");
    GPU.run(&[&attention.bind(&plan, &tensors).expect("buffers")]);
    [scores, out, lse].map(|buffer| GPU.read(&buffer))
}

/// 64 values, 0.25 to 1.
fn amid() -> Vec<f32> {
    (0_u16..64).map(|i| 0.25 + 0.75 * f32::from(i) / 63.0).collect()
}

#[test]
fn an_index_past_a_buffer_reads_nothing_beside_it() {
    for index in [
        "own[kv_pos + 1000000u]",
        "own[kv_pos + 64u]",
        "own[kv_pos + q_pos]",
        "own[q_pos - 100u - kv_pos]",
        "own[i32(kv_pos) - 75]",
        "own[0xffffffffu - kv_pos]",
        "own[kv_pos * 0x40000000u + 64u + kv_pos]",
        "own[arrayLength(&own) + kv_pos]",
        "own[kv_pos / (q_pos - q_pos)]",
        "own[kv_pos % (q_pos - q_pos)]",
    ] {
        let (values, len) = (amid(), 70_f32);
        for (class, flash) in classes().flat_map(|class| [(class, true), (class, false)]) {
            let what = format!("{index}: {class:?}, flash {flash}");
            let [scores, out, lse] = reading(index, (class, flash));
            if !flash {
                // Vulkan's own checks give 0, wgpu's an element.
                let own = |x: &f32| *x == 0.0 || values.contains(x);
                let wrong = scores.iter().find(|x| !own(x));
                assert_eq!(wrong, None, "{what}");
            }
            assert!(out.iter().all(|x| x.abs() <= 1.0 + 1e-5), "{what}: {out:?}");
            let bounds = len.ln() - 1e-4..len.ln() + 1.0 + 1e-4;
            assert!(lse.iter().all(|x| bounds.contains(x)), "{what}: {lse:?}");
        }
    }
}

#[test]
fn an_index_past_an_array_of_the_texts_own_does_no_harm() {
    const TEXT: &str = "
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    var own_array = array<f32, 4>(0.25, 0.5, 0.75, 1.0);
    own_array[kv_pos + 100000u] = 0.5;
    return own_array[q_pos * 1000u + 4u];
}
";
    let shape = Shape::cross_attention(1, 2, 40, 70, 8);
    let plain = Case::new("plain", Problem::new(shape).with_lse());
    let case = Case::new("array", plain.problem.clone().with_score_function(score("array", TEXT)));
    for target in targets().filter(|target| !matches!(target, Target::Cpu)) {
        let got = target.run(&case.name, &case.problem, &plain.tensors(0));
        assert!(got.out.iter().all(|x| x.abs() <= 1.0 + 1e-5), "{target:?}: {:?}", got.out);
        let bounds = 70_f32.ln() - 1e-4..70_f32.ln() + 1.0 + 1e-4;
        let lse = got.lse.expect("asked for");
        assert!(lse.iter().all(|x| bounds.contains(x)), "{target:?}: {lse:?}");
    }
}

#[test]
fn loops_without_an_end_end() {
    let shape = Shape::cross_attention(1, 2, 9, 40, 8);
    let plain = Problem::new(shape).with_lse();
    let case = Case::new("plain", plain.clone());
    let data = case.tensors(0);
    let others: Vec<_> = rows(&shape).filter(|at| at.2 != 5).collect();
    let answer = Answer::for_rows("others".to_owned(), &plain, &data, &others);
    let endless = [
        "loop { }",
        "while true { }",
        "for (;;) { }",
        "loop { continue; }",
        "loop { loop { } }",
        "for (var i = 0u; i < 4294967295u; i++) { for (var j = 0u; j < 4294967295u; j++) { } }",
        "var i = 0u; loop { i += 1u; if i == 0xffffffffu { break; } continuing { i -= 1u; } }",
        "for (var i = 0u; i < 10u;) { switch i { case 11u: { break; } default: { continue; } } }",
        "own_loop(kv_pos);",
    ];
    for endless in endless.into_iter().step_by(if support::small() { 3 } else { 1 }) {
        let helper = "fn own_loop(n: u32) { var i = n; while i >= 0u /* { */ { i++; } }\n";
        let score_text = format!(
            "{helper}fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {{
    if q_pos == 5u {{ {endless} }}
    return s;
}}"
        );
        let mask_text = score_text
            .replace("fn score(s: f32, ", "fn visible(")
            .replace("-> f32", "-> bool")
            .replace("return s", "return true");
        let problems = [
            plain.clone().with_score_function(score("endless", &score_text)),
            plain.clone().with_mask_function(mask("endless", &mask_text)),
        ];
        for problem in problems {
            for target in targets().filter(|target| !matches!(target, Target::Cpu)) {
                let start = Instant::now();
                let mut got = target.run(endless, &problem, &data);
                let took = start.elapsed();
                assert!(took < Duration::from_secs(60), "{endless}: {target:?}: {took:?}");
                // The row itself may be anything.
                for head in 0..2 {
                    got.out[(head * 9 + 5) * 8..][..8].fill(0.0);
                }
                answer.check(&got).unwrap_or_else(|error| panic!("{endless}: {target:?}: {error}"));
            }
        }
    }
}

/// A problem's other inputs and its functions' buffers, on the device.
struct Given(Vec<(&'static str, wgpu::Buffer)>);

impl Given {
    fn new(problem: &Problem, data: &Data) -> Self {
        let input = |words: &[u32]| GPU.input(bytemuck::cast_slice(words));
        let mut given = Vec::new();
        if problem.lengths == wgpu_attention::Lengths::Packed {
            given.push(("cu_seqlens_q", input(&data.extra.cu_seqlens_q)));
            given.push(("cu_seqlens_k", input(&data.extra.cu_seqlens_k)));
        }
        Self(given)
    }

    fn give<'a>(
        &'a self,
        tensors: Tensors<'a>,
        own: &'a [(&'static str, wgpu::Buffer)],
    ) -> Tensors<'a> {
        let tensors = self.0.iter().fold(tensors, |tensors, (name, buffer)| match *name {
            "cu_seqlens_q" => tensors.cu_seqlens_q(buffer.slice(..)),
            _ => tensors.cu_seqlens_k(buffer.slice(..)),
        });
        own.iter().fold(tensors, |tensors, (name, buffer)| tensors.buffer(name, buffer.slice(..)))
    }
}

#[test]
fn a_block_mask_gives_the_same_bits_as_none() {
    let square = Shape::self_attention(2, 4, 110, 24).with_kv_heads(2);
    let packed = Shape::cross_attention(4, 4, 170, 190, 16).with_kv_heads(2);
    let image = Problem::new(Shape::self_attention(1, 2, 108, 16));
    let (document, document_own) = documents(2, 110);
    let (window, place, place_own) = image_windows(2);
    let few = Shape::cross_attention(2, 2, 5, 200, 40);
    for (problem, own) in [
        (Problem::new(square).with_mask_function(document.clone()), document_own.clone()),
        (Problem::new(square).mask(Mask::window(30)).with_mask_function(document), document_own),
        (Problem::new(SHAPE).with_mask_function(dilated()), Vec::new()),
        (Problem::packed(packed).with_mask_function(own_causal()), Vec::new()),
        (image.with_mask_function(window).with_score_function(place), place_own),
        // So few queries that no call looks at the tiles by itself.
        (Problem::new(few).with_mask_function(own_causal()), Vec::new()),
    ] {
        let case = Case::new("block mask", problem.with_lse());
        let problem = &case.problem;
        let data = data(&case, &own);
        let given = Given::new(problem, &data);
        let own: Vec<_> = own
            .iter()
            .map(|(name, words)| (*name, GPU.input(bytemuck::cast_slice(words))))
            .collect();
        let [k, v] = [&data.k, &data.v].map(|data| GPU.input(data));
        for class in classes() {
            let attention = GPU.attention(class);
            let making = attention.plan_block_mask(problem).expect("a plan");
            let bytes = making.operand_bytes(Operand::BlockMask);
            assert!(bytes > 0, "{making}");
            let made = GPU.output(usize::try_from(bytes / 4).expect("small"));
            let tensors = given.give(Tensors::default().block_mask(made.slice(..)), &own);
            GPU.run(&[&attention.bind(&making, &tensors).expect("buffers")]);

            let with = problem.clone().with_block_mask();
            let plans = [problem, &with]
                .map(|problem| attention.plan_with(problem, Algorithm::Flash).expect("a plan"));
            assert_eq!(plans[1].operand_bytes(Operand::BlockMask), bytes);
            assert!(!plans[1].kernels().any(|name| name == "classify"), "{}", plans[1]);
            let mut seen = Vec::new();
            for draw in 0..3 {
                let q = GPU.input(&closures(&case).tensors(draw).q);
                let [without, with] = [0, 1].map(|which| {
                    let shape = problem.tensor_shape();
                    let out_len = extent(
                        problem.out,
                        [shape.batch, shape.heads, shape.q_len],
                        shape.v_head_dim,
                    );
                    let [out, lse] = [out_len, rows(&shape).count()].map(|n| GPU.output(n));
                    let tensors =
                        Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
                    let tensors = given.give(tensors.lse(lse.slice(..)), &own);
                    let tensors =
                        if which == 1 { tensors.block_mask(made.slice(..)) } else { tensors };
                    let dispatch = attention.bind(&plans[which], &tensors).expect("buffers");
                    GPU.run(&[&dispatch]);
                    [out, lse].map(|buffer| bits(&GPU.read(&buffer)))
                });
                assert!(without == with, "{class:?}, draw {draw}: {case}");
                assert!(!seen.contains(&with), "{class:?}: other queries give the same");
                seen.push(with);
            }
        }
    }
}

#[test]
fn a_block_mask_needs_a_device_and_something_hidden() {
    let (score, _) = relative_position(4);
    let plain = Problem::new(SHAPE).with_score_function(score);
    assert_eq!(plain.clone().with_block_mask().validate(), Err(ProblemError::NothingHidden));
    let nothing = GPU.attention(CLASSES[0]).plan_block_mask(&plain).err();
    assert_eq!(nothing, Some(PlanError::Problem(ProblemError::NothingHidden)));
    let masked = Problem::new(SHAPE).with_mask_function(dilated()).with_block_mask();
    let run =
        Runner::cpu().forward(&masked, &Case::new("host", masked.clone()).tensors(0).inputs());
    let wanted = PlanError::NotSupported { what: "a block mask in host memory" };
    assert_eq!(run, Err(Error::Plan(wanted)));
}

/// A text may bring no name that means something else in the kernel around it.
#[test]
fn texts_may_not_change_what_the_kernel_means() {
    let after = "fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    return own(s);
}";
    let own = "fn own(s: f32) -> f32 { return s; }";
    for (before, line, message) in [
        (
            "/* { */ fn workgroupBarrier() { }",
            1,
            "workgroupBarrier means something else in the kernel",
        ),
        ("// {\n/* /* { */ */ fn max() { }", 2, "max means something else in the kernel"),
        ("fn workgroupBarrier() { }", 1, "workgroupBarrier means something else in the kernel"),
        (
            "\nfn min(a: u32, b: u32) -> u32 { return a; }",
            2,
            "min means something else in the kernel",
        ),
        ("alias i32 = u32;", 1, "i32 means something else in the kernel"),
        ("const params = 1u;", 1, "params means something else in the kernel"),
        ("var<private> LOWEST: f32 = 1.0;", 1, "LOWEST means something else in the kernel"),
        ("fn f(p: ptr<function, f32>) { }", 1, "a caller's text may not use ptr"),
        ("fn f() { loop_budget = 9u; }", 1, "a caller's text may not use loop_budget"),
        (
            "var<workgroup> mine: array<f32, 4>;",
            1,
            "a function of the caller's may not declare variables that are not private",
        ),
        (
            "fn f() -> u32 { return params.batch; }",
            1,
            "a function of the caller's may not touch params",
        ),
        (
            "fn f() { storageBarrier(); }",
            1,
            "a function of the caller's may not wait for other invocations",
        ),
    ] {
        let text = format!("{before} {own}\n{after}");
        let function = ScoreFunction::new("mine", &text, |s, _| s);
        let problem = Problem::new(SHAPE).with_score_function(function);
        for algorithm in ALGORITHMS {
            let planned = Plan::new(&problem, &Capabilities::portable(), algorithm);
            let wanted =
                PlanError::Wgsl { name: "mine".to_owned(), line, message: message.to_owned() };
            assert_eq!(planned.err(), Some(wanted), "{before}");
        }
    }
    let text = format!("const own_factor: f32 = 2.0; struct own_pair {{ x: f32 }}\n{own}\n{after}");
    let function = ScoreFunction::new("mine", &text, |s, _| s);
    let problem = Problem::new(SHAPE).with_score_function(function);
    assert!(Plan::new(&problem, &Capabilities::portable(), Algorithm::Auto).is_ok());
}
