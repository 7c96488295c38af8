//! A page to explore attention with: one HTML file that needs no other.

use crate::bert::{Bert, Understood};
use crate::error::Error;
use serde_json::json;
use std::path::Path;

/// Writes the page of sentences, which shows a layer, a head and the word that looks first.
///
/// # Errors
/// The file cannot be written.
pub fn write(
    path: &Path,
    model: &Bert,
    sentences: &[String],
    understood: &Understood,
    [layer, head, word]: [usize; 3],
) -> Result<(), Error> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 10,000")]
    let whole = |weight: &f32| (weight * 10_000.0).round() as u16;
    let sentences = sentences.iter().enumerate().map(|(index, text)| {
        let weights = understood.attention[index].iter().map(whole);
        json!({
            "text": text,
            "tokens": understood.tokens[index],
            "similarity": understood.similarity(0, index),
            // In ten-thousandths.
            "weights": weights.collect::<Vec<_>>(),
        })
    });
    let data = json!({
        "layers": model.layers, "heads": model.heads, "layer": layer, "head": head, "word": word,
        "sentences": sentences.collect::<Vec<_>>(),
    });
    // A sentence may not end the script that it stands in.
    let data = data.to_string().replace('<', "\\u003c");
    let page = include_str!("page.html").replace("/*DATA*/null", &data);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| Error::file(folder, error))?;
    }
    std::fs::write(path, page).map_err(|error| Error::file(path, error))
}
