//! Text into tokens and back, by the `tokenizers` crate.

use crate::error::Error;
use crate::files;
use crate::gguf::{Gguf, Value};
use serde_json::json;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// A model's tokenizer.
#[derive(Debug)]
pub struct Text {
    tokenizer: Tokenizer,
    path: PathBuf,
}

impl Text {
    /// From a `tokenizer.json`.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::new(&files::read(path)?, path)
    }

    fn new(json: &[u8], path: &Path) -> Result<Self, Error> {
        let mut tokenizer =
            Tokenizer::from_bytes(json).map_err(|error| Error::file(path, error))?;
        // Marks that a text contains are text.
        tokenizer.set_encode_special_tokens(true);
        // Sentences keep their own lengths here.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| Error::file(path, error))?;
        Ok(Self { tokenizer, path: path.to_owned() })
    }

    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// It has none, or one that splits text in a way not known here.
    pub fn of(gguf: &Gguf) -> Result<Self, Error> {
        let wrong = |what: String| Error::file(&gguf.path, what);
        let [model, split] =
            ["model", "pre"].map(|key| gguf.text(&format!("tokenizer.ggml.{key}")));
        let (model, split) = (model?, split?);
        if (model, split) != ("gpt2", "smollm") {
            return Err(wrong(format!("has a tokenizer {model} ({split}): not known")));
        }
        let text = |value: &Value| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        let texts = |key: &str| {
            let list = gguf.list(key)?.iter().map(text).collect::<Option<Vec<_>>>();
            list.ok_or_else(|| wrong(format!("{key} is no list of texts")))
        };
        let tokens = texts("tokenizer.ggml.tokens")?;
        let merges = texts("tokenizer.ggml.merges")?;
        let merges: Option<Vec<_>> = merges.iter().map(|merge| merge.split_once(' ')).collect();
        let merges = merges.ok_or_else(|| wrong("has merges that are no pairs".to_owned()))?;
        // Tokens of type 3 stand for themselves: no text becomes one by chance.
        let control = |(_, kind): &(_, &Value)| **kind == Value::Integer(3);
        let kinds = gguf.list("tokenizer.ggml.token_type")?;
        let added = tokens.iter().enumerate().zip(kinds).filter(control).map(|((id, token), _)| {
            json!({
                "id": id, "content": token, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false,
            })
        });
        let added: Vec<_> = added.collect();
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        });
        let digits = json!({ "type": "Digits", "individual_digits": true });
        let json = json!({
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [digits, byte_level] },
            "decoder": byte_level,
            "model": { "type": "BPE", "vocab": vocabulary, "merges": merges },
        });
        Self::new(json.to_string().as_bytes(), &gguf.path)
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

    /// How the vocabulary spells a token.
    pub fn spelling(&self, token: u32) -> String {
        self.tokenizer.id_to_token(token).unwrap_or_default()
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
