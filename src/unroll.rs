//! Writes loops of constant length out, where wgpu's run-time checks or their length would keep a compiler from doing so,
//! or keeps compilers from it.

use crate::kernels::FlashTile;
use std::collections::BTreeSet;

/// Loops of at most this many rounds are written out: those over 128 columns, four at a time.
const MOST: u32 = 32;

/// The text with every loop `for (var i = 0u; i < N; i++) { .. }` written out, round by round, where N is a number or
/// one of the `constants`. Bodies have the number for `i`, so that what they index with it needs no check, and stand
/// where the loop was, without a block of their own: readers of SPIR-V take long over thousands of blocks. What a body
/// declares has another name in every round. Lines stay where they are: all rounds but the first are put on one.
pub(crate) fn unrolled(text: &str, constants: &[(&str, u32)]) -> String {
    indexed_by_numbers(&written_out(text, constants, &mut 0), constants)
}

/// The text with a number for every index that is a sum of products of numbers and constants. naga's time grows with the
/// square of a function's expressions, and each step of such a sum is one.
fn indexed_by_numbers(text: &str, constants: &[(&str, u32)]) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let (before, from) = rest.split_at(open + 1);
        result.push_str(before);
        let index = &from[..from.find(['[', ']']).unwrap_or(from.len())];
        match value(index, constants) {
            Some(number) => result.push_str(&format!("{number}u")),
            None => result.push_str(index),
        }
        rest = &from[index.len()..];
    }
    result.push_str(rest);
    result
}

/// The value of a sum of products.
fn value(sum: &str, constants: &[(&str, u32)]) -> Option<u32> {
    let factor = |word: &str| {
        let constant = constants.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
        constant.or_else(|| word.strip_suffix('u')?.parse().ok())
    };
    let product =
        |term: &str| term.split('*').map(|word| factor(word.trim())).product::<Option<u32>>();
    sum.split('+').map(product).sum()
}

/// `copies`: rounds with names of their own that have been written.
fn written_out(text: &str, constants: &[(&str, u32)], copies: &mut u32) -> String {
    let mut result = String::with_capacity(text.len() * 4);
    let mut rest = text;
    while let Some(start) = rest.find("for (var ") {
        let (before, from) = rest.split_at(start);
        result.push_str(before);
        match Loop::parse(from, constants) {
            Some(Loop { name, rounds, body, after }) => {
                let body = written_out(body, constants, copies);
                let code =
                    body.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
                let line = code.collect::<Vec<_>>().join(" ");
                let declared = declared(&line);
                for i in 0..rounds {
                    let body = if i == 0 { &body } else { &line };
                    *copies += u32::from(!declared.is_empty());
                    result.push_str(&with_words(body, |word| {
                        let is_new = declared.contains(word);
                        (word == name)
                            .then(|| format!("{i}u"))
                            .or(is_new.then(|| format!("{word}_{copies}")))
                    }));
                }
                rest = after;
            }
            None => {
                let (head, after) = from.split_at("for (var ".len());
                result.push_str(head);
                rest = after;
            }
        }
    }
    result.push_str(rest);
    result
}

/// The names that a text declares.
fn declared(text: &str) -> BTreeSet<&str> {
    let words: Vec<&str> =
        text.split(|c: char| !is_of_word(c)).filter(|word| !word.is_empty()).collect();
    let pairs = words.windows(2).filter(|pair| ["let", "var", "const"].contains(&pair[0]));
    pairs.map(|pair| pair[1]).collect()
}

/// The text with other words for some: members, which follow a point, stay.
fn with_words(text: &str, other: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some(start) = rest.find(is_of_word) {
        let (before, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|c| !is_of_word(c)).unwrap_or(from.len()));
        result.push_str(before);
        match other(word).filter(|_| !before.ends_with('.')) {
            Some(other) => result.push_str(&other),
            None => result.push_str(word),
        }
        rest = after;
    }
    result.push_str(rest);
    result
}

fn is_of_word(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

/// The text with loops that no compiler writes out: what is added to their variables is taken once, which only the
/// parameters say.
pub(crate) fn rolled(text: &str) -> String {
    let once = format!("params.rows_each / {}u", FlashTile::TILE_M);
    text.replace("++) {", &format!(" += {once}) {{"))
        .replace("+= THREADS) {", &format!("+= THREADS * ({once})) {{"))
}

struct Loop<'a> {
    name: &'a str,
    rounds: u32,
    body: &'a str,
    after: &'a str,
}

impl<'a> Loop<'a> {
    /// The loop that `text` starts with, if it is one of constant length without a way out of its middle.
    fn parse(text: &'a str, constants: &[(&str, u32)]) -> Option<Self> {
        let head = text.strip_prefix("for (var ")?;
        let (name, head) = head.split_once(" = 0u; ")?;
        let head = head.strip_prefix(name)?.strip_prefix(" < ")?;
        let (limit, head) = head.split_once("; ")?;
        let body = head.strip_prefix(name)?.strip_prefix("++) {")?;
        let number = limit.strip_suffix('u').and_then(|number| number.parse().ok());
        let constant = constants.iter().find(|(name, _)| *name == limit).map(|(_, value)| *value);
        let rounds = number.or(constant).filter(|rounds| *rounds <= MOST)?;
        let mut depth = 1;
        let end = body.char_indices().find_map(|(at, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(at)
        })?;
        let (body, after) = body.split_at(end);
        let leaves = ["break", "continue", "return"].iter().any(|word| body.contains(word));
        (!leaves).then_some(Self { name, rounds, body, after: &after[1..] })
    }
}

#[cfg(test)]
mod tests {
    use super::{rolled, unrolled};

    #[test]
    fn loops_of_constant_length_are_written_out() {
        let text = "for (var i = 0u; i < 2u; i++) { for (var r = 0u; r < N; r++) { f(i, r); } }";
        let written = unrolled(text, &[("N", 2)]);
        let words: Vec<&str> = written.split_whitespace().collect();
        assert_eq!(words.join(" "), "f(0u, 0u); f(0u, 1u); f(1u, 0u); f(1u, 1u);");
    }

    #[test]
    fn what_a_body_declares_has_a_name_of_its_own_in_every_round() {
        let text = "for (var i = 0u; i < 2u; i++) { let a = b.a + i; for (var j = 0u; j < 1u; j++) { var c = a; } }\n\
                    for (var i = 0u; i < 1u; i++) { let a = v.i; if a > 1u { let i4 = 4u; } }";
        let written = unrolled(text, &[]);
        let declared: Vec<&str> =
            written.split("let ").skip(1).map(|rest| &rest[..rest.find(' ').unwrap()]).collect();
        assert_eq!(declared.len(), 4, "{written}");
        assert!((1..4).all(|i| !declared[..i].contains(&declared[i])), "{written}");
        assert!(written.contains(&format!("let {} = b.a + 1u;", declared[1])), "{written}");
        assert!(written.contains(&format!(" = {};", declared[1])), "{written}");
        assert!(
            written.contains(&format!("let {} = v.i; if {0} > 1u {{", declared[2])),
            "{written}"
        );
    }

    #[test]
    fn an_index_is_one_number() {
        let text = "for (var i = 1u; i < 2u; i++) { } for (var i = 0u; i < 2u; i++) { s[2u * N + i] = t[N * i + j][i] + u[(i + 1u)] + i; }";
        let written = unrolled(text, &[("N", 3)]);
        let words: Vec<&str> = written.split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "for (var i = 1u; i < 2u; i++) { } s[6u] = t[N * 0u + j][0u] + u[(0u + 1u)] + 0u; \
             s[7u] = t[N * 1u + j][1u] + u[(1u + 1u)] + 1u;"
        );
    }

    #[test]
    fn lines_stay_where_they_are() {
        let text = "for (var i = 0u; i < 3u; i++) {\n    f(i); // once\n    g(i);\n}\nh();\n";
        let written = unrolled(text, &[]);
        assert_eq!(written.matches("g(").count(), 3, "{written}");
        assert_eq!(written.lines().nth(4), Some("h();"), "{written}");
    }

    #[test]
    fn other_loops_stay() {
        for text in [
            "for (var i = lane; i < 2u; i++) { f(i); }",
            "for (var i = 0u; i < M; i++) { f(i); }",
            "for (var i = 0u; i < 99u; i++) { f(i); }",
            "for (var i = 0u; i < 2u; i++) { if g() { break; } }",
        ] {
            assert_eq!(unrolled(text, &[("N", 2)]), text);
        }
    }

    #[test]
    fn loops_are_kept_from_compilers() {
        let text = "for (var i = 0u; i < 4u; i++) { x[i]++; }\nfor (var i = lane; i < N; i += THREADS) { put(i); }";
        let want = "for (var i = 0u; i < 4u; i += params.rows_each / 4u) { x[i]++; }\n\
                    for (var i = lane; i < N; i += THREADS * (params.rows_each / 4u)) { put(i); }";
        assert_eq!(rolled(text), want);
    }
}
