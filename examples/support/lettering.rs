//! A small line-drawn font: every glyph is a few strokes and arcs.

/// Height of a capital in the font's units; also the baseline's distance from the top.
pub(crate) const CAPITAL: f32 = 14.0;

/// Space between two glyphs, in the font's units.
const GAP: f32 = 3.4;

/// A line from one point to another.
pub(crate) type Stroke = [(f32, f32); 2];

/// Width of `text` in the font's units.
pub(crate) fn width(text: &str) -> f32 {
    let glyphs = text.chars().map(|letter| glyph(letter).0 + GAP);
    (glyphs.sum::<f32>() - GAP).max(0.0)
}

/// The strokes of `text` in the font's units, its top left corner at the origin, y down.
pub(crate) fn strokes(text: &str) -> Vec<Stroke> {
    let mut all = Vec::new();
    let mut left = 0.0;
    for letter in text.chars() {
        let (advance, path) = glyph(letter);
        for part in path.split(';').filter(|part| !part.is_empty()) {
            let points = match part.strip_prefix('@') {
                Some(arc) => arc_points(arc),
                None => line_points(part),
            };
            all.extend(points.windows(2).map(|pair| [0, 1].map(|i| (pair[i].0 + left, pair[i].1))));
        }
        left += advance + GAP;
    }
    all
}

/// `x,y x,y ...`
fn line_points(text: &str) -> Vec<(f32, f32)> {
    let point = |pair: &str| {
        let (x, y) = pair.split_once(',').expect("a point is x,y");
        (number(x), number(y))
    };
    text.split(' ').map(point).collect()
}

/// `centre x,centre y,radius x,radius y,from,to`, in degrees clockwise from the right.
fn arc_points(text: &str) -> Vec<(f32, f32)> {
    let numbers: Vec<f32> = text.split(',').map(number).collect();
    let [x, y, radius_x, radius_y, from, to] = numbers[..] else { panic!("an arc has 6 numbers") };
    (0_u8..=24)
        .map(|i| (from + (to - from) * f32::from(i) / 24.0).to_radians())
        .map(|angle| (x + radius_x * angle.cos(), y + radius_y * angle.sin()))
        .collect()
}

fn number(text: &str) -> f32 {
    text.parse().expect("the font's own numbers")
}

/// Advance and path: lines and `@` arcs, separated by `;`. Capitals reach from 0 to 14, an x from 4 to 14.
fn glyph(letter: char) -> (f32, &'static str) {
    match letter {
        'a' => (8.0, "@4,9,4,5,0,360;8,4 8,14"),
        'b' => (8.0, "@4,9,4,5,0,360;0,0 0,14"),
        'c' => (7.2, "@4,9,4,5,45,315"),
        'd' => (8.0, "@4,9,4,5,0,360;8,0 8,14"),
        'e' => (8.0, "0,9 8,9;@4,9,4,5,45,360"),
        'f' => (5.5, "@5,3,3,3,180,290;2,3 2,14;0,4.5 5.3,4.5"),
        'g' => (8.0, "@4,9,4,5,0,360;8,4 8,14;@4,14,4,4,0,150"),
        'h' => (8.0, "0,0 0,14;@4,8,4,4,180,360;8,8 8,14"),
        'i' => (0.4, "0.2,4 0.2,14;0.2,0.2 0.2,0.4"),
        'j' => (3.0, "3,4 3,15;@0,15,3,3,0,90;3,0.2 3,0.4"),
        'k' => (7.2, "0,0 0,14;6.6,4 0,10.5;2.6,8 7.2,14"),
        'l' => (0.4, "0.2,0 0.2,14"),
        'm' => (12.0, "0,4 0,14;@3,7.2,3,3.2,180,360;6,7 6,14;@9,7.2,3,3.2,180,360;12,7 12,14"),
        'n' => (8.0, "0,4 0,14;@4,8,4,4,180,360;8,8 8,14"),
        'o' => (8.0, "@4,9,4,5,0,360"),
        'p' => (8.0, "@4,9,4,5,0,360;0,4 0,18"),
        'q' => (8.0, "@4,9,4,5,0,360;8,4 8,18"),
        'r' => (5.0, "0,4 0,14;@4,8,4,4,180,290"),
        's' => (7.0, "@3.5,6.5,3.1,2.5,90,330;@3.5,11.5,3.4,2.5,-90,155"),
        't' => (5.5, "2.2,0.5 2.2,11;@5.2,11,3,3,95,180;0,4.5 5.3,4.5"),
        'u' => (8.0, "0,4 0,10;@4,10,4,4,0,180;8,4 8,14"),
        'v' => (8.0, "0,4 4,14 8,4"),
        'w' => (12.0, "0,4 3,14 6,5 9,14 12,4"),
        'x' => (8.0, "0,4 8,14;8,4 0,14"),
        'y' => (8.4, "0,4 4.2,14;8.4,4 4.2,14 2.8,17 0.6,18"),
        'z' => (7.5, "0.3,4 7.5,4 0,14 7.5,14"),
        'A' => (10.0, "0,14 5,0 10,14;2,9.4 8,9.4"),
        'C' => (9.0, "@5.2,7,5.2,7,48,312"),
        'E' => (7.0, "7,0 0,0 0,14 7,14;0,7 6,7"),
        'L' => (7.0, "0,0 0,14 7,14"),
        'M' => (11.0, "0,14 0,0 5.5,9 11,0 11,14"),
        'P' => (8.5, "0,14 0,0 4.5,0;@4.5,4,4,4,-90,90;4.5,8 0,8"),
        'S' => (8.4, "@4.2,3.6,3.8,3.6,90,335;@4.2,10.6,4.2,3.4,-90,155"),
        'T' => (10.0, "0,0 10,0;5,0 5,14"),
        'W' => (14.0, "0,0 3.5,14 7,1 10.5,14 14,0"),
        '0' => (8.0, "@4,7,4,7,0,360"),
        '1' => (5.0, "0.8,3.4 4.4,0 4.4,14"),
        '2' => (8.0, "@4,4,4,4,180,395;7.28,6.29 0,14 8,14"),
        '3' => (8.0, "@4,3.5,3.5,3.5,200,450;@4,10.5,4,3.5,-90,155"),
        '4' => (8.5, "6,14 6,0 0,10 8.5,10"),
        '5' => (8.0, "7.4,0 1.3,0 0.9,6.6;@4,9.5,4,4.5,-140,150"),
        '6' => (8.0, "@4,9.7,4,4.3,0,360;0.3,8.2 4.8,0"),
        '7' => (8.0, "0,0 8,0 3,14"),
        '8' => (8.0, "@4,3.5,3.4,3.5,0,360;@4,10.5,4,3.5,0,360"),
        '9' => (8.0, "@4,4.3,4,4.3,0,360;7.7,5.8 3.2,14"),
        '.' => (0.4, "0.2,13.7 0.2,13.9"),
        ',' => (1.2, "1,13.6 0.2,16.6"),
        ':' => (0.4, "0.2,6 0.2,6.2;0.2,13.7 0.2,13.9"),
        '"' => (3.6, "0.3,0 0.3,4;3.3,0 3.3,4"),
        '-' => (5.0, "0,9 5,9"),
        '[' => (3.0, "3,-1.5 0,-1.5 0,16.5 3,16.5"),
        ']' => (3.0, "0,-1.5 3,-1.5 3,16.5 0,16.5"),
        ' ' => (3.0, ""),
        _ => (8.0, "0,0 8,0 8,14 0,14 0,0"),
    }
}
