//! Turns of a conversation, in the words that a model was taught to expect around them.

use crate::error::Error;
use crate::llama::{Decoder, Llama};
use crate::program::Sampling;
use std::time::{Duration, Instant};

/// What SmolLM2's template says where nothing else is said.
pub const SYSTEM: &str = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

/// A conversation under way.
pub struct Chat<'a> {
    model: &'a Llama,
    /// What was read and written so far.
    pub decoder: Decoder<'a>,
    /// What has to be read before the next turn.
    pending: Vec<u32>,
    marks: [u32; 2],
}

/// How an answer went.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Timing {
    /// Tokens read before the answer.
    pub read: usize,
    /// How long that took, with the answer's first token.
    pub reading: Duration,
    /// Tokens of the answer.
    pub written: usize,
    /// How long those after the first took.
    pub writing: Duration,
    /// It ended because the context is full.
    pub full: bool,
}

impl std::fmt::Display for Timing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
        let (read, written) = (self.read, self.written);
        write!(f, "read {read} tokens at {:.1} a second", rate(read, self.reading))?;
        // The first token of an answer belongs to the reading.
        match written.saturating_sub(1) {
            0 => write!(f, ", wrote {written}"),
            rest => write!(f, ", wrote {written} at {:.1} a second", rate(rest, self.writing)),
        }?;
        if self.full { write!(f, ", until the context was full") } else { Ok(()) }
    }
}

impl<'a> Chat<'a> {
    /// A conversation of up to `context` tokens.
    ///
    /// # Errors
    /// The model knows no turns, or the machine cannot.
    pub fn new(
        model: &'a Llama,
        context: usize,
        sampling: Sampling,
        system: &str,
    ) -> Result<Self, Error> {
        let marks = [model.text.token("<|im_start|>")?, model.text.token("<|im_end|>")?];
        let decoder = Decoder::new(model, context, sampling)?;
        let mut chat = Self { model, decoder, pending: Vec::new(), marks };
        chat.say("system", system)?;
        Ok(chat)
    }

    /// Someone's turn: `<|im_start|>who`, a new line, what they say, `<|im_end|>`, a new line.
    fn say(&mut self, who: &str, what: &str) -> Result<(), Error> {
        let [start, end] = self.marks;
        self.pending.push(start);
        self.pending.extend(self.model.text.encode(&format!("{who}\n{what}"))?);
        self.pending.push(end);
        self.pending.extend(self.model.text.encode("\n")?);
        Ok(())
    }

    /// Answers, at most `most` tokens. `piece` gets the answer piece by piece and says whether to go on.
    ///
    /// # Errors
    /// The conversation is longer than the context, or the machine cannot.
    pub fn answer(
        &mut self,
        question: &str,
        most: usize,
        mut piece: impl FnMut(&str) -> bool,
    ) -> Result<Timing, Error> {
        self.say("user", question)?;
        let [start, end] = self.marks;
        self.pending.push(start);
        self.pending.extend(self.model.text.encode("assistant\n")?);
        let mut timing = Timing { read: self.pending.len(), ..Timing::default() };
        let (begin, pending) = (Instant::now(), std::mem::take(&mut self.pending));
        let go_on = std::cell::RefCell::new(&mut piece);
        let first = self.decoder.read(&pending, || (*go_on.borrow_mut())(""))?;
        timing.reading = begin.elapsed();
        let (begin, mut tokens, mut shown) = (Instant::now(), Vec::new(), 0);
        let mut next = first;
        while let Some(token) = next.filter(|token| *token != end) {
            tokens.push(token);
            let text = self.model.text.decode(&tokens)?;
            // A letter may take several tokens: until it is whole, it is not shown.
            let whole = !text.ends_with('\u{fffd}');
            let new = text.get(shown..).filter(|_| whole).unwrap_or("");
            shown += new.len();
            timing.full = self.decoder.room() == 0;
            if !piece(new) || tokens.len() >= most || timing.full {
                break;
            }
            next = Some(self.decoder.advance()?);
        }
        timing.written = tokens.len();
        timing.writing = begin.elapsed();
        // The last token was chosen and not read: it ends the turn, whatever it was.
        self.pending.push(end);
        self.pending.extend(self.model.text.encode("\n")?);
        Ok(timing)
    }
}
