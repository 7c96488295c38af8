//! A perceptually even colour map: magma, from black over purple and orange to pale yellow.

/// Nine of its colours, evenly spaced.
const MAGMA: [[u8; 3]; 9] = [
    [0, 0, 4],
    [28, 16, 68],
    [79, 18, 123],
    [129, 37, 129],
    [181, 54, 122],
    [229, 89, 100],
    [251, 135, 97],
    [254, 194, 135],
    [252, 253, 191],
];

/// The colour of `value`, 0 to 1.
pub(crate) fn magma(value: f32) -> [u8; 3] {
    let last = MAGMA.len() - 1;
    let place = value.clamp(0.0, 1.0) * last as f32;
    let index = (0..last).rev().find(|i| *i as f32 <= place).unwrap_or(0);
    mix(MAGMA[index], MAGMA[index + 1], place - index as f32)
}

/// `a` where `share` is 0, `b` where it is 1.
pub(crate) fn mix(a: [u8; 3], b: [u8; 3], share: f32) -> [u8; 3] {
    std::array::from_fn(|i| {
        let value = f32::from(a[i]) + (f32::from(b[i]) - f32::from(a[i])) * share;
        #[expect(clippy::cast_possible_truncation, reason = "between two bytes")]
        let byte = value.round() as u8;
        byte
    })
}
