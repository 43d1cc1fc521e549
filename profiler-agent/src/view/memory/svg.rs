//! A picture of resident memory over time as SVG 1.1: text, which a browser shows in its own letters.

use std::fmt::Write as _;

use super::MemoryWatch;
use super::picture::{Anchor, CURVE_WIDTH, Colour, Picture, Shape, Text};

/// The text of the picture; `None` when nothing was seen.
#[must_use]
pub fn svg(watch: &MemoryWatch) -> Option<String> {
    let picture = Picture::new(watch)?;
    let (width, height) = (picture.width, picture.height);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for shape in &picture.shapes {
        text.push_str(&element(shape));
    }
    text.push_str("</svg>\n");
    Some(text)
}

fn element(shape: &Shape) -> String {
    match shape {
        Shape::Rule { x, y, colour } => format!(
            "<line x1=\"{}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{}\"/>\n",
            x[0],
            x[1],
            hex(*colour)
        ),
        Shape::Box {
            x,
            y,
            width,
            height,
            colour,
        } => format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width}\" height=\"{height}\" fill=\"{}\"/>\n",
            hex(*colour)
        ),
        Shape::Curve { points, colour } => {
            let mut list = String::new();
            for (x, y) in points {
                // Writing to a String does not fail.
                let _ = write!(list, "{x:.1},{y:.1} ");
            }
            // A single point is a dot with round ends if there is a line, of whatever length.
            if let [(x, y)] = points.as_slice() {
                let _ = write!(list, "{x:.1},{y:.1}");
            }
            format!(
                "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"{CURVE_WIDTH}\" stroke-linecap=\"round\" \
                 points=\"{}\"/>\n",
                hex(*colour),
                list.trim_end()
            )
        }
        Shape::Text(text) => text_element(text),
    }
}

fn text_element(text: &Text) -> String {
    let anchor = match text.anchor {
        Anchor::Start => "",
        Anchor::Middle => " text-anchor=\"middle\"",
        Anchor::End => " text-anchor=\"end\"",
    };
    let weight = if text.is_bold {
        " font-weight=\"bold\""
    } else {
        ""
    };
    format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"{}\"{anchor}{weight}>{}</text>\n",
        text.x,
        text.y,
        text.size,
        xml(&text.shown)
    )
}

fn hex(Colour(colour): Colour) -> String {
    format!("#{colour:06x}")
}

/// Text that is no markup. What XML does not take at all was escaped before.
fn xml(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
