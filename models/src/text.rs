//! Text into tokens and back, by the `tokenizers` crate.

use crate::checkpoint::{Checkpoint, read};
use crate::error::Error;
use serde_json::{Value, json};
use std::path::PathBuf;
use tokenizers::Tokenizer;

/// A model's tokenizer.
#[derive(Debug)]
pub struct Text {
    tokenizer: Tokenizer,
    path: PathBuf,
}

impl Text {
    /// That of a model: a GGUF file's own, else `tokenizer.json` beside its weights.
    ///
    /// # Errors
    /// There is none, or it splits text in a way not known here.
    pub fn of(file: &Checkpoint) -> Result<Self, Error> {
        let (json, path) = match file.is_gguf() {
            true => (tokenizer_json(file)?.to_string().into_bytes(), file.path.clone()),
            false => {
                let path = file.path.with_file_name("tokenizer.json");
                (read(&path)?, path)
            }
        };
        let wrong = |error| Error::file(&path, error);
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(wrong)?;
        // Marks that a text contains are text.
        tokenizer.set_encode_special_tokens(true);
        // Sentences keep their own lengths here.
        tokenizer.with_padding(None).with_truncation(None).map_err(wrong)?;
        Ok(Self { tokenizer, path })
    }

    /// Tokens of a text, with those around it that the tokenizer adds.
    ///
    /// # Errors
    /// The tokenizer has no token for some of it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.tokenizer.encode(text, true);
        Ok(encoding.map_err(|error| Error::file(&self.path, error))?.get_ids().to_vec())
    }

    /// Text of tokens, without those that stand for themselves.
    ///
    /// # Errors
    /// They are no text.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        self.tokenizer.decode(tokens, true).map_err(|error| Error::file(&self.path, error))
    }

    /// Tokens that there are.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// How the vocabulary spells tokens.
    pub fn spell(&self, tokens: &[u32]) -> Vec<String> {
        let spelling = |token: &u32| self.tokenizer.id_to_token(*token).unwrap_or_default();
        tokens.iter().map(spelling).collect()
    }

    /// The token that is spelt so.
    ///
    /// # Errors
    /// There is none.
    pub fn token(&self, spelling: &str) -> Result<u32, Error> {
        let token = self.tokenizer.token_to_id(spelling);
        token.ok_or_else(|| Error::file(&self.path, format!("has no token {spelling}")))
    }
}

/// What a GGUF file's metadata says, as a `tokenizer.json` says it.
fn tokenizer_json(file: &Checkpoint) -> Result<Value, Error> {
    let value = |key: &str| file.settings.get(&format!("tokenizer.ggml.{key}"));
    let list = |key: &str| {
        let list = value(key).and_then(Value::as_array);
        list.ok_or_else(|| file.wrong(format!("has no {key} of a tokenizer")))
    };
    if (value("model"), value("pre")) != (Some(&json!("gpt2")), Some(&json!("smollm"))) {
        return Err(file.wrong("has a tokenizer that is not known"));
    }
    let (mut vocabulary, mut added) = (serde_json::Map::new(), Vec::new());
    let tokens = list("tokens")?.iter().map(|token| token.as_str().unwrap_or_default());
    for ((id, token), kind) in tokens.enumerate().zip(list("token_type")?) {
        vocabulary.insert(token.to_owned(), json!(id));
        // Tokens of type 3 stand for themselves: no text becomes one by chance.
        if *kind == json!(3) {
            added.push(json!({
                "id": id, "content": token, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false,
            }));
        }
    }
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [digits, byte_level] },
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocabulary, "merges": list("merges")? },
    }))
}
