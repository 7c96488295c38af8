//! A page to explore attention with: one HTML file that needs no other.

use crate::bert::{Bert, Understood};
use crate::error::Error;
use serde_json::json;
use std::path::Path;

const PAGE: &str = include_str!("page.html");

/// What a page shows first: layer, head, and the word that looks.
pub type First = [usize; 3];

/// Writes the page of sentences.
///
/// # Errors
/// The file cannot be written.
pub fn write(
    path: &Path,
    model: &Bert,
    sentences: &[String],
    understood: &Understood,
    [layer, head, word]: First,
) -> Result<(), Error> {
    let all = sentences.iter().enumerate().map(|(index, text)| {
        json!({
            "text": text,
            "tokens": understood.tokens[index],
            "similarity": understood.similarity(0, index),
            "weights": base64(&fractions(&understood.attention[index])),
        })
    });
    let (layers, heads) = (model.layers, model.heads);
    let about = format!(
        "{layers} layers of {heads} heads, trained; the weights that they computed for these words."
    );
    let data = json!({
        "about": about, "layers": layers, "heads": heads, "layer": layer, "head": head, "word": word,
        "sentences": all.collect::<Vec<_>>(),
    });
    // A sentence may not end the script that it stands in.
    let data = data.to_string().replace('<', "\\u003c");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| Error::file(folder, error))?;
    }
    let page = PAGE.replace("/*DATA*/null", &data);
    std::fs::write(path, page).map_err(|error| Error::file(path, error))
}

/// In 16 bits, little-endian.
fn fractions(weights: &[f32]) -> Vec<u8> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 65535")]
    let fraction = |weight: &f32| (weight.clamp(0.0, 1.0) * 65_535.0).round() as u16;
    weights.iter().flat_map(|weight| fraction(weight).to_le_bytes()).collect()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 4648.
    #[test]
    fn bytes_are_spelt_in_base64() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text, "{bytes}");
        }
    }

    #[test]
    fn fractions_are_of_16_bits() {
        assert_eq!(fractions(&[0.0, 1.0, 0.5, 2.0]), [0, 0, 255, 255, 0, 128, 255, 255]);
    }
}
