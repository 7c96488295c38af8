//! Which keys a query sees: the definition that every kernel is tested against.

use crate::error::ProblemError;
use std::ops::Range;

/// Where the diagonal of a causal mask or window runs when `q_len != kv_len`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Diagonal {
    /// Query `i` stands at key `i + kv_len - q_len`: the last query sees the last key.
    #[default]
    BottomRight,
    /// Query `i` stands at key `i`.
    TopLeft,
    /// Query `i` stands at key `i + offset`.
    Offset(i32),
    /// As `Offset`, one a sequence, in a buffer: `diag_offsets`, `[batch]` i32.
    PerSequence,
}

/// The band of keys that a query may see, both ends inclusive.
///
/// ```text
///          BottomRight, q_len 3, kv_len 5        TopLeft
/// full     x x x x x / x x x x x / x x x x x     the same
/// causal   x x x . . / x x x x . / x x x x x     x . . . . / x x . . . / x x x . .
/// window 1 . x x . . / . . x x . / . . . x x     x . . . . / x x . . . / . x x . .
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Mask {
    /// How many keys before its own position a query sees; `None` is all.
    pub left: Option<u32>,
    /// How many keys after its own position a query sees; `None` is all, `Some(0)` is causal.
    pub right: Option<u32>,
    /// What a query's own position is.
    pub diagonal: Diagonal,
}

impl Mask {
    /// Every key is visible.
    pub const FULL: Self = Self { left: None, right: None, diagonal: Diagonal::BottomRight };
    /// No key after the query.
    pub const CAUSAL: Self = Self { right: Some(0), ..Self::FULL };

    /// At most `left` keys before the query's own position and `right` after it.
    pub const fn band(left: Option<u32>, right: Option<u32>) -> Self {
        Self { left, right, ..Self::FULL }
    }

    /// Causal, and at most `left` keys before the query's own position: `left + 1` keys in all.
    pub const fn window(left: u32) -> Self {
        Self { left: Some(left), ..Self::CAUSAL }
    }

    /// Causal, `width` keys in all, as model configurations count it: the token itself is one.
    ///
    /// # Errors
    /// [`ProblemError::EmptyWindow`] when `width` is 0.
    pub const fn from_sliding_window(width: u32) -> Result<Self, ProblemError> {
        match width.checked_sub(1) {
            Some(left) => Ok(Self::window(left)),
            None => Err(ProblemError::EmptyWindow),
        }
    }

    /// The same band along another diagonal.
    #[must_use]
    pub const fn along(self, diagonal: Diagonal) -> Self {
        Self { diagonal, ..self }
    }

    /// Whether every query sees every key.
    pub const fn is_full(&self) -> bool {
        self.left.is_none() && self.right.is_none()
    }

    /// Keys of one sequence visible to its query `q_pos`: the definition that every kernel is tested against.
    /// Query 0 stands at key `diagonal`.
    pub fn kv_range(&self, kv_len: u32, diagonal: i64, q_pos: u32) -> Range<u32> {
        let own = i64::from(q_pos) + diagonal;
        let clamp = |x: i64| u32::try_from(x.clamp(0, kv_len.into())).expect("clamped to a length");
        let start = self.left.map_or(0, |left| clamp(own - i64::from(left)));
        let end = self.right.map_or(kv_len, |right| clamp(own + i64::from(right) + 1));
        start..end.max(start)
    }

    /// The key that query 0 stands at; `None` where a buffer says.
    pub fn diagonal(&self, q_len: u32, kv_len: u32) -> Option<i64> {
        match self.diagonal {
            Diagonal::BottomRight => Some(i64::from(kv_len) - i64::from(q_len)),
            Diagonal::TopLeft => Some(0),
            Diagonal::Offset(offset) => Some(offset.into()),
            Diagonal::PerSequence => None,
        }
    }

    /// First visible key and one past the last, relative to the query's index; `None` is open.
    pub(crate) fn bounds(&self, diagonal: i64) -> (Option<i64>, Option<i64>) {
        (
            self.left.map(|left| diagonal - i64::from(left)),
            self.right.map(|right| diagonal + i64::from(right) + 1),
        )
    }
}
