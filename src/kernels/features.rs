//! What an attention kernel compiles in, by what the problem asks for: each feature is a file that supplies a
//! function.

use super::{Access, Binding, Element};
use crate::device::Capabilities;
use crate::dropout::DropoutMask;
use crate::function::{Text, bounded};
use crate::pairs::MaskFormat;
use crate::problem::{Lengths, Problem, ScoreStage};
use crate::shader::{File, Source, file};
use crate::shape::DType;
use std::borrow::Cow;
use std::sync::Arc;

/// How a kernel finds out what a row sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rows {
    /// Every key.
    Full,
    /// One band for all.
    Band,
    /// A record a batch entry.
    Sequences,
    /// A record a sequence, and of each row whose it is.
    Packed,
}

impl Rows {
    fn in_tables(self) -> bool {
        matches!(self, Self::Sequences | Self::Packed)
    }
}

/// What a problem asks of its kernels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Features {
    pub(crate) q: Element,
    pub(crate) kv: Element,
    pub(crate) out: Element,
    pub(crate) rows: Rows,
    /// Positions of a page, where keys and values lie in pages.
    pub(crate) page_len: Option<u32>,
    pub(crate) softcap: bool,
    pub(crate) alibi: bool,
    pub(crate) sinks: bool,
    pub(crate) mask: Option<MaskFormat>,
    pub(crate) bias: Option<DType>,
    pub(crate) score: Option<Text>,
    /// Of the score function, where gradients are made.
    pub(crate) derivative: Option<Text>,
    pub(crate) visible: Option<Text>,
    /// Buffers of the two functions.
    pub(crate) buffers: Vec<(Arc<str>, &'static str)>,
    /// Tiles are classified before.
    pub(crate) classes: bool,
    pub(crate) lse: bool,
    /// The lse is in two parts, for a merge.
    pub(crate) sums: bool,
    pub(crate) scores: Option<ScoreStage>,
    /// Weights are dropped.
    pub(crate) dropout: Option<DropoutMask>,
}

/// Which features a kernel has a use for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Uses {
    /// What rows see.
    Rows,
    /// That, and where keys and values lie.
    Keys,
    /// What rows see, where values lie, and which weights are kept.
    Values,
    /// What rows see, the scores of pairs and which are visible.
    Pairs,
    /// That, where keys and values lie, and which weights are kept.
    Gradients,
    /// What rows see, the scores of pairs, which are visible, and sinks.
    Softmax,
    /// What any of the three stages has a use for.
    Staged,
    /// That, and classes.
    Fused,
    /// Sinks alone.
    Sinks,
}

impl Features {
    /// `banded`: the mask hides some key of the shape from some query.
    pub(crate) fn of(problem: &Problem, capabilities: &Capabilities, banded: bool) -> Self {
        let element = |dtype| Element::of(dtype, capabilities.f16);
        let rows = match problem.lengths {
            Lengths::Packed => Rows::Packed,
            _ if problem.has_sequences() => Rows::Sequences,
            _ if banded => Rows::Band,
            _ => Rows::Full,
        };
        Self {
            q: element(problem.dtype),
            kv: element(problem.kv_dtype),
            out: element(problem.out_dtype),
            rows,
            page_len: problem.pages.map(|pages| pages.page_len),
            softcap: problem.softcap.is_some(),
            alibi: problem.alibi.is_some(),
            sinks: problem.sinks,
            mask: problem.boolean_mask.map(|mask| mask.format),
            bias: problem.bias.map(|bias| bias.dtype),
            score: problem.score_function.as_ref().map(|function| function.text.clone()),
            derivative: None,
            visible: problem.mask_function.as_ref().map(|function| function.text.clone()),
            buffers: problem.function_buffers().expect("validated"),
            classes: false,
            lse: problem.lse,
            sums: false,
            scores: problem.scores,
            dropout: problem.drops().map(|dropout| dropout.mask),
        }
    }

    /// Plain f32 attention.
    pub(crate) fn plain() -> Self {
        Self {
            q: Element::F32,
            kv: Element::F32,
            out: Element::F32,
            rows: Rows::Full,
            page_len: None,
            softcap: false,
            alibi: false,
            sinks: false,
            mask: None,
            bias: None,
            score: None,
            derivative: None,
            visible: None,
            buffers: Vec::new(),
            classes: false,
            lse: false,
            sums: false,
            scores: None,
            dropout: None,
        }
    }

    /// The same of which kernels make gradients: their own results, without a cache's keys.
    pub(super) fn differentiable(&self) -> Self {
        let kv = if matches!(self.kv, Element::Q8 | Element::Q4) { self.q } else { self.kv };
        let derivative = self.score.as_ref().map(|score| Text {
            wgsl:
                "fn d_score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {\n    \
                   return 1.0;\n}\n"
                    .into(),
            ..score.clone()
        });
        Self {
            kv,
            derivative,
            page_len: None,
            classes: false,
            lse: false,
            sums: false,
            scores: None,
            ..self.clone()
        }
    }

    /// The same without what only the staged kernels do.
    pub(super) fn fused(&self) -> Self {
        let dropout = self.dropout.map(|_| DropoutMask::Seeded);
        Self { scores: None, dropout, ..self.clone() }
    }

    /// What a kernel of finished rows has to know of rows: which have a sink.
    pub(super) fn sink_rows(&self) -> Self {
        let rows = if self.sinks { self.rows } else { Rows::Full };
        Self { rows, ..self.clone() }
    }

    /// Whether a pair in the band may be hidden.
    pub(crate) fn hides_pairs(&self) -> bool {
        self.mask.is_some() || self.bias.is_some() || self.visible.is_some()
    }

    /// Whether something other than its scale happens to a pair's score.
    pub(crate) fn changes(&self) -> bool {
        self.softcap || self.alibi || self.score.is_some() || self.hides_pairs()
    }

    /// Whether scores are wanted of pairs that nothing sees, too.
    pub(crate) fn every_tile(&self) -> bool {
        matches!(self.scores, Some(ScoreStage::Raw | ScoreStage::Capped))
    }

    /// Whether what happens to a pair takes more registers than its product leaves.
    pub(crate) fn is_heavy(&self) -> bool {
        let light = [self.softcap, self.alibi, self.bias.is_some(), self.mask.is_some()];
        let some = light.into_iter().filter(|asked| *asked).count();
        self.score.is_some() || self.visible.is_some() || some >= 2
    }

    /// Whether some row may not see some key.
    pub(crate) fn hides(&self) -> bool {
        self.rows != Rows::Full || self.hides_pairs()
    }

    /// Whether the kernel binds the table of small inputs.
    pub(crate) fn binds_tables(&self, uses: Uses) -> bool {
        let (keys, pairs, sinks, classes, dropout) = match uses {
            Uses::Rows => (false, false, false, false, false),
            Uses::Keys => (true, false, false, false, false),
            Uses::Values => (true, false, false, false, true),
            Uses::Pairs => (false, true, false, false, false),
            Uses::Gradients => (true, true, false, false, true),
            Uses::Softmax => (false, true, true, false, false),
            Uses::Staged => (true, true, true, false, true),
            Uses::Fused => (true, true, true, true, true),
            Uses::Sinks => return self.sinks,
        };
        self.rows.in_tables()
            || keys && self.page_len.is_some()
            || pairs && self.alibi
            || sinks && self.sinks
            || classes && self.classes
            || dropout && self.dropout == Some(DropoutMask::Seeded)
    }

    /// Whether the kernel binds masks, biases and the callers' buffers.
    pub(crate) fn binds_pairs(uses: Uses) -> bool {
        !matches!(uses, Uses::Rows | Uses::Keys | Uses::Values | Uses::Sinks)
    }

    /// Whether the kernel binds a given dropout mask: of those that know one, only the third stage and gradients do.
    pub(crate) fn binds_keep(&self, uses: Uses) -> bool {
        matches!(uses, Uses::Values | Uses::Gradients) && self.dropout == Some(DropoutMask::Given)
    }

    /// The bindings that come after a kernel's own: tables, keep, mask, bias, the functions' buffers.
    pub(super) fn bindings(&self, uses: Uses) -> Vec<Binding> {
        let words = |name: &'static str, bits| Binding {
            name: Cow::Borrowed(name),
            access: Access::Read,
            element: "u32",
            bits,
        };
        let mut bindings = Vec::new();
        bindings.extend(self.binds_tables(uses).then(|| words("tables", 32)));
        bindings.extend(self.binds_keep(uses).then(|| words("keep", 8)));
        if Self::binds_pairs(uses) {
            let bits = |format: MaskFormat| u32::try_from(format.bits()).expect("at most 8");
            bindings.extend(self.mask.map(|format| words("mask", bits(format))));
            let bias_bits = |dtype| Element::of(dtype, false).bits();
            bindings.extend(self.bias.map(|dtype| words("bias", bias_bits(dtype))));
            bindings.extend(self.buffers.iter().map(|(name, element)| Binding {
                name: Cow::Owned(name.to_string()),
                access: Access::Read,
                element,
                bits: 0,
            }));
        }
        bindings
    }

    /// Adds what says which keys a row sees: `common/attention.wgsl` and the files it needs.
    pub(super) fn add_rows(&self, source: Source) -> Source {
        let source = source.file(file!("common/attention.wgsl"));
        match self.rows {
            Rows::Full => source.file(file!("rows/full.wgsl")),
            Rows::Band => source.file(file!("rows/band.wgsl")),
            Rows::Sequences => {
                source.file(file!("rows/sequences.wgsl")).file(file!("rows/record.wgsl"))
            }
            Rows::Packed => source.file(file!("rows/packed.wgsl")).file(file!("rows/record.wgsl")),
        }
    }

    /// Adds what says where rows of keys and values lie.
    pub(super) fn add_keys(&self, source: Source) -> Source {
        match self.page_len {
            None => source.file(file!("kv/contiguous.wgsl")),
            Some(page_len) => source.constant("PAGE_LEN", page_len).file(file!("kv/paged.wgsl")),
        }
    }

    /// Adds what says which sinks there are.
    pub(super) fn add_sinks(&self, source: Source) -> Source {
        source.file(if self.sinks { file!("score/sink.wgsl") } else { file!("score/no_sink.wgsl") })
    }

    /// Adds what says which weights are kept.
    pub(super) fn add_dropout(&self, source: Source) -> Source {
        match self.dropout {
            None => source.file(file!("dropout/none.wgsl")),
            Some(DropoutMask::Seeded) => source
                .flag("PACKED_KEYS", self.rows == Rows::Packed)
                .file(file!("dropout/random.wgsl"))
                .file(file!("dropout/seeded.wgsl")),
            Some(DropoutMask::Given) => source.file(file!("dropout/given.wgsl")),
        }
    }

    /// Adds the score of a pair and whether it is visible.
    pub(super) fn add_pairs(&self, mut source: Source) -> Source {
        let functions = [&self.score, &self.derivative, &self.visible].into_iter().flatten();
        let (mut checked, mut loops) = (false, false);
        for text in functions {
            checked |= !text.unchecked;
            let wgsl = if text.unchecked { text.wgsl.to_string() } else { bounded(&text.wgsl) };
            loops |= wgsl != *text.wgsl;
            let path = Cow::Owned(format!("({})", text.name));
            source = source.callers_file(File { path, text: Cow::Owned(wgsl) });
        }
        if self.score.is_some() || self.visible.is_some() {
            source = source.file(if loops {
                file!("score/loops.wgsl")
            } else {
                file!("score/no_loops.wgsl")
            });
        }
        if checked {
            source = source.checked();
        }
        if let Some(format) = self.mask {
            let bits = u32::try_from(format.bits()).expect("at most 8");
            source = source.constant("MASK_BITS", bits);
        }
        if let Some(dtype) = self.bias {
            source = source.file(match dtype {
                DType::F32 => file!("score/bias_f32.wgsl"),
                DType::F16 => file!("score/bias_f16.wgsl"),
                DType::BF16 => file!("score/bias_bf16.wgsl"),
                DType::Q8 | DType::Q4 => unreachable!("validated: a bias is no blocks"),
            });
        }
        let either = |given: bool, yes: File, no: File| if given { yes } else { no };
        source
            .file(either(self.softcap, file!("score/softcap.wgsl"), file!("score/no_cap.wgsl")))
            .file(either(self.alibi, file!("score/alibi.wgsl"), file!("score/no_alibi.wgsl")))
            .file(either(
                self.bias.is_some(),
                file!("score/bias.wgsl"),
                file!("score/no_bias.wgsl"),
            ))
            .file(either(
                self.score.is_some(),
                file!("score/function.wgsl"),
                file!("score/no_function.wgsl"),
            ))
            .file(either(self.mask.is_some(), file!("mask/boolean.wgsl"), file!("mask/none.wgsl")))
            .file(either(
                self.visible.is_some(),
                file!("mask/function.wgsl"),
                file!("mask/no_function.wgsl"),
            ))
            .file(file!("score/pair.wgsl"))
    }
}

impl Features {
    /// Adds the score of a pair and its derivatives, after [`add_pairs`](Self::add_pairs).
    pub(super) fn add_pair_gradients(&self, source: Source) -> Source {
        let cap =
            if self.softcap { file!("gradient/cap.wgsl") } else { file!("gradient/no_cap.wgsl") };
        let function = if self.score.is_some() {
            file!("gradient/function.wgsl")
        } else {
            file!("gradient/no_function.wgsl")
        };
        source.file(cap).file(function).file(file!("gradient/pair.wgsl"))
    }
}

/// The binding and the file that store the lse, or do not.
pub(super) fn store_lse(asked: bool) -> (Option<Binding>, File) {
    let binding =
        Binding { name: Cow::Borrowed("lse"), access: Access::ReadWrite, element: "u32", bits: 32 };
    if asked {
        (Some(binding), file!("store/lse.wgsl"))
    } else {
        (None, file!("store/no_lse.wgsl"))
    }
}
