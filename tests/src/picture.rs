//! Pictures as another program reads them: CPython's zlib and its XML parser.

use std::path::Path;
use std::process::Command;

use crate::interpreters;

/// Reads a PNG of eight bits a colour, with each check that the format allows, and writes width, height and pixels.
const READER: &str = "\
import struct, sys, zlib
data = open(sys.argv[1], 'rb').read()
assert data[:8] == b'\\x89PNG\\r\\n\\x1a\\n'
chunks, at = [], 8
while at < len(data):
    length, = struct.unpack('>I', data[at:at + 4])
    kind, body = data[at + 4:at + 8], data[at + 8:at + 8 + length]
    assert struct.unpack('>I', data[at + 8 + length:at + 12 + length])[0] == zlib.crc32(kind + body)
    chunks.append((kind, body))
    at += 12 + length
assert chunks[0][0] == b'IHDR' and chunks[-1] == (b'IEND', b'')
width, height, depth, colours, compression, filters, interlace = struct.unpack('>IIBBBBB', chunks[0][1])
assert (depth, colours, compression, filters, interlace) == (8, 2, 0, 0, 0)
rows = zlib.decompress(b''.join(body for kind, body in chunks if kind == b'IDAT'))
assert len(rows) == height * (1 + 3 * width)
pixels = bytearray()
for y in range(height):
    row = rows[y * (1 + 3 * width):(y + 1) * (1 + 3 * width)]
    assert row[0] == 0, 'a filter'
    pixels += row[1:]
sys.stdout.buffer.write(struct.pack('<II', width, height) + pixels)
";

/// Prints the text of each `text` element of an SVG on a line.
const TEXTS: &str = "\
import sys
from xml.etree import ElementTree
root = ElementTree.parse(sys.argv[1]).getroot()
space = '{http://www.w3.org/2000/svg}'
assert root.tag == space + 'svg'
for element in root.iter(space + 'text'):
    assert '\\n' not in element.text and len(element) == 0
    sys.stdout.buffer.write(element.text.encode() + b'\\n')
";

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green, blue; row by row.
    pub pixels: Vec<[u8; 3]>,
}

impl Image {
    /// Reads a PNG.
    ///
    /// # Panics
    /// With what the reader says, when it does not take it.
    #[must_use]
    pub fn of_png(path: &Path) -> Self {
        let output = read(READER, path);
        let length = |at: usize| {
            let bytes = output[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes) as usize
        };
        Self {
            width: length(0),
            height: length(4),
            pixels: output[8..].as_chunks::<3>().0.to_vec(),
        }
    }

    /// The colour of a pixel.
    #[must_use]
    pub fn at(&self, x: usize, y: usize) -> [u8; 3] {
        self.pixels[y * self.width + x]
    }

    /// The rows of a column that have a colour.
    #[must_use]
    pub fn rows_with(&self, x: usize, colour: [u8; 3]) -> Vec<usize> {
        let rows = 0..self.height;
        rows.filter(|y| self.at(x, *y) == colour).collect()
    }
}

/// The texts of an SVG.
///
/// # Panics
/// With what the parser says, when it does not take it.
#[must_use]
pub fn texts_of_svg(path: &Path) -> Vec<String> {
    let output = String::from_utf8(read(TEXTS, path)).expect("it is UTF-8");
    output.lines().map(str::to_owned).collect()
}

fn read(program: &str, path: &Path) -> Vec<u8> {
    let output = Command::new(interpreters::newest().path)
        .args(["-I", "-S", "-B", "-c", program])
        .arg(path)
        .output()
        .expect("it is there");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", path.display());
    output.stdout
}
