//! Writes loops of constant length out, where wgpu's run-time checks or their length would keep a compiler from doing so,
//! or keeps compilers from it.

use crate::kernels::FlashTile;

/// Loops of at most this many rounds are written out: those over 128 columns, four at a time.
const MOST: u32 = 32;

/// The text with every loop `for (var i = 0u; i < N; i++) { .. }` written out, round by round, where N is a number or
/// one of the `constants`. Bodies see `i` as a constant, so that what they index with it needs no check. Lines stay where
/// they are: all rounds but the first are put on one.
pub(crate) fn unrolled(text: &str, constants: &[(&str, u32)]) -> String {
    let mut result = String::with_capacity(text.len() * 4);
    let mut rest = text;
    while let Some(start) = rest.find("for (var ") {
        let (before, from) = rest.split_at(start);
        result.push_str(before);
        match Loop::parse(from, constants) {
            Some(Loop { name, rounds, body, after }) => {
                let body = unrolled(body, constants);
                let code = body.lines().map(|line| line.split("//").next().unwrap_or_default());
                let line = code.collect::<Vec<_>>().join(" ");
                for i in 0..rounds {
                    let body = if i == 0 { &body } else { &line };
                    result.push_str(&format!("{{ const {name} = {i}u;{body}}}"));
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
        assert_eq!(written.matches("f(i, r);").count(), 4, "{written}");
        assert_eq!(written.matches("const r = 1u;").count(), 2);
        assert!(!written.contains("for"));
    }

    #[test]
    fn lines_stay_where_they_are() {
        let text = "for (var i = 0u; i < 3u; i++) {\n    f(i); // once\n    g(i);\n}\nh();\n";
        let written = unrolled(text, &[]);
        assert_eq!(written.matches("g(i);").count(), 3, "{written}");
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
