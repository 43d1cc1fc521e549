//! A picture of resident memory over time as PNG (W3C, third edition), at twice the size of the SVG, so that letters are sharp.
//!
//! Nothing of the system is needed: the letters are Noto Sans Mono in one size, drawn before by a crate. Those that it does
//! not have (it has Latin ones) are shown as a replacement character.

use std::io::Write as _;

use flate2::Compression;
use flate2::Crc;
use flate2::write::ZlibEncoder;
use noto_sans_mono_bitmap::{
    FontWeight, RasterHeight, RasterizedChar, get_raster, get_raster_width,
};

use super::MemoryWatch;
use super::picture::{Anchor, CURVE_WIDTH, Colour, Picture, Shape, Text};

/// Pixels of the PNG for one of the picture.
const SCALE: f64 = 2.0;

/// The letters, and how far below their top the baseline lies.
const LETTERS: RasterHeight = RasterHeight::Size32;
const ADVANCE: usize = get_raster_width(FontWeight::Regular, LETTERS);
const ASCENT: usize = 25;

/// What is free at the right edge.
const MARGIN: usize = 8;

/// Bytes of a pixel: red, green, blue.
const PIXEL_BYTES: usize = 3;

/// The bytes of the file; `None` when nothing was seen.
#[must_use]
pub fn png(watch: &MemoryWatch) -> Option<Vec<u8>> {
    let picture = Picture::new(watch)?;
    let mut canvas = Canvas::new(scaled(picture.width), scaled(picture.height));
    for shape in &picture.shapes {
        canvas.draw(shape);
    }
    Some(canvas.encode())
}

/// A length in pixels of the PNG, rounded.
fn scaled(length: f64) -> usize {
    (length * SCALE).round().max(0.0) as usize
}

/// A white sheet.
struct Canvas {
    width: usize,
    height: usize,
    /// Row by row, from the top.
    pixels: Vec<u8>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            pixels: vec![0xff; width * height * PIXEL_BYTES],
        }
    }

    fn draw(&mut self, shape: &Shape) {
        match shape {
            Shape::Rule { x, y, colour } => {
                let (left, right) = (scaled(x[0]), scaled(x[1]));
                // Around its middle, as SVG has it.
                let thickness = SCALE as usize;
                let top = scaled(*y).saturating_sub(thickness / 2);
                self.fill((left, top), (right, top + thickness), *colour);
            }
            Shape::Box {
                x,
                y,
                width,
                height,
                colour,
            } => {
                let end = (scaled(x + width), scaled(y + height));
                self.fill((scaled(*x), scaled(*y)), end, *colour);
            }
            Shape::Curve { points, colour } => self.curve(points, *colour),
            Shape::Text(text) => self.text(text),
        }
    }

    fn fill(
        &mut self,
        (left, top): (usize, usize),
        (right, bottom): (usize, usize),
        colour: Colour,
    ) {
        for y in top..bottom {
            for x in left..right {
                self.blend(x, y, colour, 0xff);
            }
        }
    }

    /// Lays a colour over a pixel, 255 hides what was there. Outside of the sheet nothing happens.
    fn blend(&mut self, x: usize, y: usize, Colour(colour): Colour, cover: u8) {
        if x >= self.width || y >= self.height || cover == 0 {
            return;
        }
        let start = (y * self.width + x) * PIXEL_BYTES;
        let Some(pixel) = self.pixels.get_mut(start..start + PIXEL_BYTES) else {
            return;
        };
        let cover = u32::from(cover);
        for (old, shift) in pixel.iter_mut().zip([16, 8, 0]) {
            let new = (colour >> shift) & 0xff;
            *old = ((new * cover + u32::from(*old) * (255 - cover) + 127) / 255) as u8;
        }
    }

    /// Lines with round ends. How much of a pixel they cover follows from its distance to the nearest line: the mask keeps
    /// the most, so that nothing is darker where they meet.
    fn curve(&mut self, points: &[(f64, f64)], colour: Colour) {
        let radius = CURVE_WIDTH * SCALE / 2.0;
        let mut mask = vec![0_u8; self.width * self.height];
        let points: Vec<_> = points.iter().map(|(x, y)| (x * SCALE, y * SCALE)).collect();
        let lines = points.windows(2).map(|pair| (pair[0], pair[1]));
        // A single point is a dot.
        let dot = points.first().map(|point| (*point, *point));
        for (from, to) in lines.chain(dot) {
            let reach = radius + 1.0;
            let span = |a: f64, b: f64, most: usize| {
                let first = (a.min(b) - reach).floor().max(0.0) as usize;
                let last = (a.max(b) + reach).ceil().max(0.0) as usize;
                first..last.min(most)
            };
            for y in span(from.1, to.1, self.height) {
                for x in span(from.0, to.0, self.width) {
                    let distance = distance((x as f64 + 0.5, y as f64 + 0.5), from, to);
                    let cover = ((radius + 0.5 - distance).clamp(0.0, 1.0) * 255.0).round() as u8;
                    let most = &mut mask[y * self.width + x];
                    *most = cover.max(*most);
                }
            }
        }
        for (idx, cover) in mask.into_iter().enumerate() {
            self.blend(idx % self.width, idx / self.width, colour, cover);
        }
    }

    /// A line of text; what goes beyond the right edge is cut off.
    fn text(&mut self, text: &Text) {
        let at = scaled(text.x);
        // The dots of what was cut are not among the letters.
        let shown = text.shown.replace('…', "...");
        let n_chars = shown.chars().count();
        let left = match text.anchor {
            Anchor::Start => at,
            Anchor::Middle => at.saturating_sub(n_chars * ADVANCE / 2),
            Anchor::End => at.saturating_sub(n_chars * ADVANCE),
        };
        let room = self.width.saturating_sub(left + MARGIN) / ADVANCE;
        let is_cut = n_chars > room;
        let kept = if is_cut { room.saturating_sub(3) } else { room };
        let dots = if is_cut { "..." } else { "" };
        let top = scaled(text.y).saturating_sub(ASCENT);
        // There is one size: what is larger in the SVG is bold.
        let weight = if text.is_bold || text.size > super::picture::TEXT_SIZE {
            FontWeight::Bold
        } else {
            FontWeight::Regular
        };
        let chars = shown.chars().take(kept).chain(dots.chars());
        for (idx, char) in chars.enumerate() {
            let Some(letter) = letter(char, weight) else {
                continue;
            };
            for (y, row) in letter.raster().iter().enumerate() {
                for (x, cover) in row.iter().enumerate() {
                    self.blend(left + idx * ADVANCE + x, top + y, Colour(0), *cover);
                }
            }
        }
    }

    /// As a file: signature, header, pixels, end.
    fn encode(&self) -> Vec<u8> {
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut header = Vec::new();
        for length in [self.width, self.height] {
            header.extend((length as u32).to_be_bytes());
        }
        // Eight bits a colour, red green blue, the only compression, the only filters, not interlaced.
        header.extend([8, 2, 0, 0, 0]);
        chunk(&mut file, *b"IHDR", &header);
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        for row in self.pixels.chunks(self.width * PIXEL_BYTES) {
            // Each row says its filter: none. Writing to a Vec does not fail.
            let _ = encoder.write_all(&[0]);
            let _ = encoder.write_all(row);
        }
        chunk(&mut file, *b"IDAT", &encoder.finish().unwrap_or_default());
        chunk(&mut file, *b"IEND", &[]);
        file
    }
}

/// Length, type, data, and a checksum of type and data.
fn chunk(file: &mut Vec<u8>, kind: [u8; 4], data: &[u8]) {
    let mut checksum = Crc::new();
    checksum.update(&kind);
    checksum.update(data);
    file.extend((data.len() as u32).to_be_bytes());
    file.extend(kind);
    file.extend(data);
    file.extend(checksum.sum().to_be_bytes());
}

fn letter(char: char, weight: FontWeight) -> Option<RasterizedChar> {
    get_raster(char, weight, LETTERS).or_else(|| get_raster('\u{fffd}', weight, LETTERS))
}

/// From a point to the nearest one of a line.
fn distance((x, y): (f64, f64), (from_x, from_y): (f64, f64), (to_x, to_y): (f64, f64)) -> f64 {
    let (along_x, along_y) = (to_x - from_x, to_y - from_y);
    let length = along_x * along_x + along_y * along_y;
    let part = if length > 0.0 {
        (((x - from_x) * along_x + (y - from_y) * along_y) / length).clamp(0.0, 1.0)
    } else {
        0.0
    };
    (x - from_x - part * along_x).hypot(y - from_y - part * along_y)
}
