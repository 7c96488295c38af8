//! The command line that computes a case with the `attend` example.

use super::case::Case;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use wgpu_attention::{Diagonal, DropoutMask, Layout, Lengths, Mask, ScoreStage, Slopes};

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

/// Writes the inputs to a file and says how to run it; where the page of `attend` has no word for the case, that.
pub(crate) fn reproduce(case: &Case, from: &str) -> String {
    let seed = format!("only the seed says it: {from}");
    let problem = &case.problem;
    let packed = problem.lengths == Lengths::Packed;
    let mut contiguous = problem.clone().layout(if packed { Layout::Bshd } else { Layout::Bhsd });
    if let Some(pages) = problem.pages {
        contiguous = contiguous.with_pages(pages);
    }
    let one_type = problem.dtype == problem.kv_dtype && problem.dtype == problem.out_dtype;
    let own_functions = problem.score_function.is_some() || problem.mask_function.is_some();
    if contiguous != *problem || !one_type || own_functions {
        return seed;
    }
    let name: String = from
        .chars()
        .take_while(|c| *c != '(')
        .map(|c| if c.is_alphanumeric() { c } else { '_' })
        .collect();
    let path = format!("target/fuzz/{}.safetensors", name.trim_matches('_'));
    let Some(tensors) = tensors(case) else { return seed };
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("as long as its shape"))
    });
    let written = std::fs::create_dir_all("target/fuzz").is_ok()
        && safetensors::serialize(views.collect::<Vec<_>>(), None)
            .is_ok_and(|bytes| std::fs::write(&path, bytes).is_ok());
    if !written {
        return seed;
    }
    format!("cargo run --release --example attend -- {}{path} out.safetensors", options(case))
}

/// The options that ask for a case.
pub(crate) fn options(case: &Case) -> String {
    let p = &case.problem;
    let mut text = String::new();
    let mut add = |option: String| text.push_str(&format!("{option} "));
    if p.lengths == Lengths::Packed {
        add("--layout thd".to_owned());
    }
    let Mask { left, right, diagonal, .. } = p.mask;
    if right == Some(0) && matches!(diagonal, Diagonal::BottomRight) {
        add("--causal bottom-right".to_owned());
    } else if right == Some(0) && diagonal == Diagonal::TopLeft {
        add("--causal top-left".to_owned());
    } else if let Some(right) = right {
        add(format!("--window-right {right}"));
    }
    if let Some(left) = left {
        add(format!("--window-left {left}"));
    }
    if let Some(scale) = p.scale {
        add(format!("--scale {scale}"));
    }
    if let Some(cap) = p.softcap {
        add(format!("--softcap {cap}"));
    }
    if let Some(dropout) = p.dropout {
        add(format!("--dropout {}", dropout.p));
        if dropout.mask == DropoutMask::Seeded {
            add(format!("--seed {}", case.tensors(0).extra.seed));
        }
    }
    if p.weights {
        add("--weights".to_owned());
    }
    match p.scores {
        Some(ScoreStage::Raw) => add("--scores raw".to_owned()),
        Some(ScoreStage::Capped) => add("--scores capped".to_owned()),
        Some(_) => add("--scores biased".to_owned()),
        None => {}
    }
    match p.dtype {
        wgpu_attention::DType::F16 => add("--dtype f16".to_owned()),
        wgpu_attention::DType::BF16 => add("--dtype bf16".to_owned()),
        _ => {}
    }
    text
}

/// The inputs of a case; `None` where a tensor is laid out as no file has it.
pub(crate) fn tensors(case: &Case) -> Option<Vec<Tensor>> {
    let (p, inputs) = (&case.problem, case.tensors(0));
    let s = p.shape;
    let floats = |data: &[f32]| data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let integers = |data: &[u32]| data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let sizes = |axes: &[u32]| axes.iter().map(|n| *n as usize).collect::<Vec<_>>();
    let shape = |heads: u32, len: u32, dim: u32| {
        if p.lengths == Lengths::Packed {
            sizes(&[len, heads, dim])
        } else {
            sizes(&[s.batch, heads, len, dim])
        }
    };
    let e = &inputs.extra;
    let mut tensors =
        vec![("q", Dtype::F32, shape(s.heads, s.q_len, s.head_dim), floats(&inputs.q))];
    let mut kv_lens = e.kv_lens.clone();
    // Keys that a mask or a bias has: those of all entries of a row of the table.
    let mut keys = s.kv_len;
    if let Some(pages) = p.pages {
        let entries = pages.table_len(s.kv_len);
        keys = entries * pages.page_len;
        let pool = |dim| sizes(&[pages.pages, pages.page_len, s.kv_heads, dim]);
        tensors.push(("k_pages", Dtype::F32, pool(s.head_dim), floats(&inputs.k)));
        tensors.push(("v_pages", Dtype::F32, pool(s.v_head_dim), floats(&inputs.v)));
        let table = integers(&e.block_table);
        tensors.push(("block_table", Dtype::I32, sizes(&[s.batch, entries]), table));
        if kv_lens.is_empty() {
            kv_lens = vec![s.kv_len; s.batch as usize];
        }
    } else {
        tensors.push(("k", Dtype::F32, shape(s.kv_heads, s.kv_len, s.head_dim), floats(&inputs.k)));
        tensors.push((
            "v",
            Dtype::F32,
            shape(s.kv_heads, s.kv_len, s.v_head_dim),
            floats(&inputs.v),
        ));
    }
    if let Some(mask) = p.boolean_mask {
        if mask.pairs != wgpu_attention::Pairs::new(mask.pairs.axes) {
            return None;
        }
        let (axes, mask) = widened(mask.pairs.axes, &e.mask, keys);
        let bytes = mask.iter().map(|shown| u8::from(*shown)).collect();
        tensors.push(("mask", Dtype::BOOL, sizes(&axes), bytes));
    }
    if let Some(bias) = p.bias {
        if bias.pairs != wgpu_attention::Pairs::new(bias.pairs.axes) {
            return None;
        }
        let (axes, bias) = widened(bias.pairs.axes, &e.bias, keys);
        tensors.push(("bias", Dtype::F32, sizes(&axes), floats(&bias)));
    }
    if p.dropout.is_some_and(|dropout| dropout.mask == DropoutMask::Given) {
        let mut bytes = vec![0; (s.batch * s.heads * s.q_len * keys) as usize];
        let rows = e.keep.chunks(s.kv_len.max(1) as usize);
        for (row, bytes) in rows.zip(bytes.chunks_mut(keys.max(1) as usize)) {
            row.iter().zip(bytes).for_each(|(keep, byte)| *byte = u8::from(*keep));
        }
        tensors.push(("keep", Dtype::BOOL, sizes(&[s.batch, s.heads, s.q_len, keys]), bytes));
    }
    let slopes = if p.alibi == Some(Slopes::PerSequence) {
        sizes(&[s.batch, s.heads])
    } else {
        sizes(&[s.heads])
    };
    let offsets: Vec<u32> = match p.mask.diagonal {
        Diagonal::Offset(offset) => {
            vec![u32::from_ne_bytes(offset.to_ne_bytes()); s.batch as usize]
        }
        _ => e.diag_offsets.iter().map(|x| u32::from_ne_bytes(x.to_ne_bytes())).collect(),
    };
    for (name, dtype, shape, bytes) in [
        ("alibi_slopes", Dtype::F32, slopes, floats(&e.alibi_slopes)),
        ("sinks", Dtype::F32, sizes(&[s.heads]), floats(&e.sinks)),
        ("diag_offset", Dtype::I32, sizes(&[s.batch]), integers(&offsets)),
        ("q_lens", Dtype::I32, sizes(&[s.batch]), integers(&e.q_lens)),
        ("kv_lens", Dtype::I32, sizes(&[s.batch]), integers(&kv_lens)),
        ("cu_seqlens_q", Dtype::I32, sizes(&[s.batch + 1]), integers(&e.cu_seqlens_q)),
        ("cu_seqlens_k", Dtype::I32, sizes(&[s.batch + 1]), integers(&e.cu_seqlens_k)),
    ] {
        if !bytes.is_empty() {
            tensors.push((name, dtype, shape, bytes));
        }
    }
    Some(tensors)
}

/// Values of pairs, as many to a row as there are `keys`, unless one stands for all: what is past a length is not seen.
fn widened<T: Clone + Default>(mut axes: [u32; 4], data: &[T], keys: u32) -> ([u32; 4], Vec<T>) {
    let width = axes[3];
    if width <= 1 || width == keys {
        return (axes, data.to_vec());
    }
    axes[3] = keys;
    let widen = |row: &[T]| {
        let mut row = row.to_vec();
        row.resize(keys as usize, T::default());
        row
    };
    (axes, data.chunks(width as usize).flat_map(widen).collect())
}
