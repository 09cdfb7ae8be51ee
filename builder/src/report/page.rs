//! A report as one page that needs nothing else: no network, no further file.
//!
//! Owns: HTML, escaping, the data of the map. Does not own: style and script (`page.css`, `page.js`), figures.
//!
//! Names in an image are hostile. They reach the page through [`Html`], which escapes markup, or inside the JSON of the
//! map, where `<` is escaped so that no tag can end it, and the script puts them in place as text only. Should one get
//! through all the same, the policy in the head allows no script but ours, by its digest.

use super::{Duplicate, Kind, Report, percent};
use crate::human::{bytes, count};
use crate::study::Shown;
use base64::Engine as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::fmt::{self, Write as _};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The parts of the map in columns; a node comes after its parent.
#[derive(Debug, Default, Serialize)]
pub(super) struct NodeList {
    names: Vec<String>,
    parents: Vec<usize>,
    plain: Vec<u64>,
    stored: Vec<u64>,
    files: Vec<u64>,
    /// Class of a file, [`NodeList::DIRECTORY`] or [`NodeList::REST`].
    classes: Vec<i8>,
    /// Blob of its first chunk, or -1.
    layers: Vec<i64>,
}

impl NodeList {
    pub(super) const DIRECTORY: i8 = -1;
    pub(super) const REST: i8 = -2;

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    #[expect(clippy::too_many_arguments, reason = "one for each column")]
    pub(super) fn push(
        &mut self,
        name: String,
        parent: usize,
        plain: u64,
        stored: u64,
        files: u64,
        class: i8,
        layer: Option<u32>,
    ) {
        self.names.push(name);
        self.parents.push(parent);
        self.plain.push(plain);
        self.stored.push(stored);
        self.files.push(files);
        self.classes.push(class);
        self.layers.push(layer.map_or(-1, i64::from));
    }
}

/// Shows text with all that HTML gives a meaning escaped.
struct Html<T>(T);

impl<T: fmt::Display> fmt::Display for Html<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl fmt::Write for Escape<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for c in text.chars() {
                    match c {
                        '&' => self.0.write_str("&amp;")?,
                        '<' => self.0.write_str("&lt;")?,
                        '>' => self.0.write_str("&gt;")?,
                        '"' => self.0.write_str("&quot;")?,
                        '\'' => self.0.write_str("&#39;")?,
                        c => self.0.write_char(c)?,
                    }
                }
                Ok(())
            }
        }
        write!(Escape(f), "{}", self.0)
    }
}

/// JSON inside a script element: no `<` can end or open anything there.
fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value)
        .unwrap_or_else(|_| "null".to_owned())
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

fn source_digest(text: &str) -> String {
    format!("'sha256-{}'", base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text)))
}

/// The page.
pub(crate) fn render(report: &Report<'_>) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(report, &mut out);
    out
}

fn write(report: &Report<'_>, out: &mut String) -> fmt::Result {
    let name = Html(Shown(report.name.as_bytes())).to_string();
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src {}; script-src {}; \
         base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>{name} – where the bytes are</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
        source_digest(STYLE),
        source_digest(SCRIPT),
    )?;
    head(report, &name, out)?;
    map(out)?;
    layers(report, out)?;
    types(report, out)?;
    largest(report, out)?;
    duplicates(report, out)?;
    let classes: Vec<&str> = report.classes.iter().map(|class| class.name.as_str()).collect();
    let data =
        serde_json::json!({"nodes": report.tree.nodes(), "classes": classes, "layers": report.layers.len()});
    write!(
        out,
        "</main>\n<footer>Made by rafs-image from the bootstrap alone. Stored bytes are charged to the first file that uses \
         a chunk; a file with several names counts once.</footer>\n\
         <script type=\"application/json\" id=\"data\">{}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        json(&data)
    )
}

fn head(report: &Report<'_>, name: &str, out: &mut String) -> fmt::Result {
    let totals = &report.totals;
    let about = if totals.estimated { "≈ " } else { "" };
    write!(
        out,
        "<header>\n<h1>{name}</h1>\n<p>RAFS v{} · {} · {} · chunks of {} · {} of metadata</p>\n</header>\n<main>\n\
         <dl class=\"tiles\">\n",
        report.version,
        Html(&report.compressor),
        Html(&report.digester),
        bytes(u64::from(report.chunk_size)),
        bytes(report.bootstrap_size)
    )?;
    let mut tile = |name: &str, value: String, note: String| {
        writeln!(out, "<div><dt>{name}</dt><dd>{}<small>{}</small></dd></div>", Html(value), Html(note))
    };
    tile(
        "Files",
        count(totals.files),
        [
            (totals.directories, "directory", "directories"),
            (totals.symlinks, "symlink", "symlinks"),
            (totals.hardlinks, "hardlink", "hardlinks"),
            (totals.specials, "special", "special"),
        ]
        .iter()
        .filter(|(n, ..)| *n > 0)
        .map(|(n, one, many)| format!("{} {}", count(*n), if *n == 1 { one } else { many }))
        .collect::<Vec<_>>()
        .join(", "),
    )?;
    tile("Before compression", bytes(totals.file_bytes), format!("{} bytes", count(totals.file_bytes)))?;
    let saved = percent(totals.stored_bytes, totals.file_bytes);
    tile(
        "Stored",
        format!("{about}{}", bytes(totals.stored_bytes)),
        saved.map_or_else(|| "no data".to_owned(), |percent| format!("{percent}% of the files' bytes")),
    )?;
    tile("Chunks", count(totals.chunks), format!("used {} times", count(totals.references)))?;
    tile(
        "Saved by sharing",
        bytes(totals.deduplicated_bytes),
        if totals.stored_twice_bytes > 0 {
            format!("{about}{} still stored more than once", bytes(totals.stored_twice_bytes))
        } else {
            "nothing is stored twice".to_owned()
        },
    )?;
    let unused: u64 = report.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.unused()));
    tile(
        "Layers",
        count(report.layers.len() as u64),
        if unused > 0 {
            format!("{about}{} in them is not used", bytes(unused))
        } else {
            "all of it used".to_owned()
        },
    )?;
    out.write_str("</dl>\n")
}

fn map(out: &mut String) -> fmt::Result {
    let radio = |group: &str, options: &[(&str, &str)]| {
        let mut html = String::new();
        for (n, (value, text)) in options.iter().enumerate() {
            let checked = if n == 0 { " checked" } else { "" };
            // Writing to a string cannot fail.
            let _ = write!(
                html,
                "<label><input type=\"radio\" name=\"{group}\" value=\"{value}\"{checked}><span>{text}</span></label>"
            );
        }
        html
    };
    write!(
        out,
        "<section id=\"map\" aria-labelledby=\"map-title\">\n<h2 id=\"map-title\">Where the bytes are</h2>\n\
         <noscript><p>The map needs JavaScript; all the tables below do not.</p></noscript>\n\
         <div class=\"controls\">\n<fieldset><legend>Area</legend>{}</fieldset>\n\
         <fieldset><legend>Colour</legend>{}</fieldset>\n</div>\n\
         <nav id=\"crumbs\" aria-label=\"Directory\"></nav>\n\
         <div id=\"treemap\" role=\"tree\" aria-label=\"Map of directories and files\"></div>\n\
         <p id=\"detail\" aria-live=\"polite\"></p>\n<ul id=\"legend\" aria-label=\"Colours\"></ul>\n\
         <p class=\"hint\">Click a directory to go into it, or use the keys: <kbd>←</kbd> <kbd>→</kbd> to neighbours, \
         <kbd>↓</kbd> inside, <kbd>↑</kbd> outside, <kbd>Enter</kbd> to zoom in, <kbd>Esc</kbd> to zoom out.</p>\n\
         </section>\n",
        radio("area", &[("stored", "stored bytes"), ("plain", "file bytes")]),
        radio("colour", &[("class", "type"), ("ratio", "compression"), ("layer", "layer")]),
    )
}

/// A bar of two parts: stored bytes within plain ones, both against the longest bar.
fn bar(plain: u64, stored: u64, most: u64) -> String {
    let share = |n: u64| {
        let tenths = (u128::from(n) * 1000).checked_div(u128::from(most.max(1))).unwrap_or(0).min(1000);
        format!("{}.{}%", tenths / 10, tenths % 10)
    };
    format!(
        "<svg class=\"bar\" aria-hidden=\"true\"><rect class=\"plain\" width=\"{}\" height=\"100%\"/>\
         <rect class=\"stored\" width=\"{}\" height=\"100%\"/></svg>",
        share(plain),
        share(stored)
    )
}

fn ratio(stored: u64, plain: u64) -> String {
    percent(stored, plain).map_or_else(|| "–".to_owned(), |percent| format!("{percent}%"))
}

fn number(value: &str) -> String {
    format!("<td class=\"n\">{value}</td>")
}

fn layers(report: &Report<'_>, out: &mut String) -> fmt::Result {
    if report.layers.is_empty() {
        return Ok(());
    }
    out.write_str(
        "<section aria-labelledby=\"layers-title\">\n<h2 id=\"layers-title\">Layers</h2>\n<div class=\"scroll\"><table>\
         <thead><tr><th>Blob</th><th class=\"n\">Files</th><th class=\"n\">Chunks used</th><th class=\"n\">File bytes</th>\
         <th class=\"n\">Stored</th><th class=\"n\">Ratio</th><th class=\"n\">Not used</th><th class=\"wide\">Share</th></tr>\
         </thead><tbody>\n",
    )?;
    let most = report.layers.iter().map(|l| l.used_plain_bytes.max(l.used_stored_bytes)).max().unwrap_or(0);
    for (n, layer) in report.layers.iter().enumerate() {
        let chunks = match layer.chunks {
            Some(all) => format!("{} of {}", count(layer.used_chunks), count(u64::from(all))),
            None => count(layer.used_chunks),
        };
        let unused = if layer.unused() == 0 { "–".to_owned() } else { bytes(layer.unused()) };
        let id = Shown(layer.id.as_bytes()).to_string();
        let short: String = id.chars().take(12).collect();
        writeln!(
            out,
            "<tr><th scope=\"row\"><span class=\"key l{}\"></span>{n} <code title=\"{}\">{}</code> <small>{}</small></th>\
             {}{}{}{}{}{}<td class=\"wide\">{}</td></tr>",
            n % 10,
            Html(&id),
            Html(&short),
            Html(&layer.compressor),
            number(&count(layer.files)),
            number(&chunks),
            number(&bytes(layer.used_plain_bytes)),
            number(&bytes(layer.used_stored_bytes)),
            number(&ratio(layer.used_stored_bytes, layer.used_plain_bytes)),
            number(&unused),
            bar(layer.used_plain_bytes, layer.used_stored_bytes, most),
        )?;
    }
    out.write_str("</tbody></table></div>\n</section>\n")
}

fn types(report: &Report<'_>, out: &mut String) -> fmt::Result {
    out.write_str(
        "<section aria-labelledby=\"types-title\">\n<h2 id=\"types-title\">Compression by file type</h2>\n\
         <p class=\"hint\">Told from names and modes. Dark is what is stored, light what compression and sharing save.</p>\n",
    )?;
    let mut classes: Vec<(usize, &Kind)> =
        report.classes.iter().enumerate().filter(|(_, class)| class.files > 0).collect();
    classes.sort_by_key(|(_, class)| std::cmp::Reverse(class.file_bytes));
    let rows = |out: &mut String, kinds: &mut dyn Iterator<Item = (Option<usize>, &Kind)>, most: u64| {
        for (class, kind) in kinds {
            let key = class.map(|n| format!("<span class=\"key k{n}\"></span>")).unwrap_or_default();
            writeln!(
                out,
                "<tr><th scope=\"row\">{key}{}</th>{}{}{}{}<td class=\"wide\">{}</td></tr>",
                Html(&kind.name),
                number(&count(kind.files)),
                number(&bytes(kind.file_bytes)),
                number(&bytes(kind.stored_bytes)),
                number(&ratio(kind.stored_bytes, kind.file_bytes)),
                bar(kind.file_bytes, kind.stored_bytes, most)
            )?;
        }
        Ok(())
    };
    let most = |kinds: &mut dyn Iterator<Item = &Kind>| {
        kinds.map(|k| k.file_bytes.max(k.stored_bytes)).max().unwrap_or(0)
    };
    let head = "<div class=\"scroll\"><table><thead><tr><th>Type</th><th class=\"n\">Files</th><th class=\"n\">File bytes\
                </th><th class=\"n\">Stored</th><th class=\"n\">Ratio</th><th class=\"wide\">Before and after</th></tr>\
                </thead><tbody>\n";
    out.write_str(head)?;
    let top = most(&mut classes.iter().map(|(_, kind)| *kind));
    rows(out, &mut classes.iter().map(|(n, kind)| (Some(*n), *kind)), top)?;
    out.write_str("</tbody></table></div>\n<details><summary>By file name ending</summary>\n")?;
    out.write_str(head)?;
    let top = most(&mut report.kinds.iter());
    rows(out, &mut report.kinds.iter().map(|kind| (None, kind)), top)?;
    out.write_str("</tbody></table></div></details>\n</section>\n")
}

fn largest(report: &Report<'_>, out: &mut String) -> fmt::Result {
    out.write_str(
        "<section aria-labelledby=\"largest-title\">\n<h2 id=\"largest-title\">Largest files</h2>\n<div class=\"scroll tall\" \
         tabindex=\"0\" role=\"region\" aria-labelledby=\"largest-title\"><table><thead><tr><th>File</th>\
         <th class=\"n\">File bytes</th><th class=\"n\">Stored</th><th class=\"n\">Ratio</th><th class=\"n\">Layer</th>\
         </tr></thead><tbody>\n",
    )?;
    for file in &report.largest {
        writeln!(
            out,
            "<tr><th scope=\"row\" class=\"path\">{}</th>{}{}{}{}</tr>",
            Html(Shown(&file.path)),
            number(&bytes(file.file_bytes)),
            number(&bytes(file.stored_bytes)),
            number(&ratio(file.stored_bytes, file.file_bytes)),
            number(&file.layer.map_or_else(|| "–".to_owned(), |n| n.to_string())),
        )?;
    }
    out.write_str("</tbody></table></div>\n</section>\n")
}

fn duplicates(report: &Report<'_>, out: &mut String) -> fmt::Result {
    out.write_str(
        "<section aria-labelledby=\"shared-title\">\n<h2 id=\"shared-title\">Duplicate chunks</h2>\n",
    )?;
    if report.duplicates.is_empty() {
        return out.write_str("<p>No chunk is used twice.</p>\n</section>\n");
    }
    out.write_str(
        "<p class=\"hint\">Pieces of files with the same bytes, those that save most first. Open one to see who shares \
         it.</p>\n<div class=\"shared\">\n",
    )?;
    for one in &report.duplicates {
        duplicate(one, out)?;
    }
    out.write_str("</div>\n</section>\n")
}

fn duplicate(one: &Duplicate, out: &mut String) -> fmt::Result {
    let what = if one.zeros { "zeros".to_owned() } else { format!("chunk {}", one.digest) };
    let copies = if one.copies > 1 {
        format!("<b class=\"warn\">{} copies stored</b>", count(one.copies))
    } else {
        "stored once".to_owned()
    };
    writeln!(
        out,
        "<details><summary><b>{} saved</b> <span>{} of {}, used {} times in {} {}, {copies}</span></summary><ul>",
        bytes(one.saved()),
        Html(what),
        bytes(u64::from(one.len)),
        count(one.references),
        count(one.files),
        if one.files == 1 { "file" } else { "files" }
    )?;
    for user in &one.users {
        writeln!(out, "<li class=\"path\">{}</li>", Html(Shown(user)))?;
    }
    let more = one.files.saturating_sub(one.users.len() as u64);
    if more > 0 {
        writeln!(out, "<li>and {} more</li>", count(more))?;
    }
    out.write_str("</ul></details>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_is_markup() {
        let name = Shown(b"</script><img src=x onerror='alert(\"1\")'>&\x00");
        assert_eq!(
            Html(name).to_string(),
            "&lt;/script&gt;&lt;img src=x onerror=&#39;alert(&quot;1&quot;)&#39;&gt;&amp;\\u{0}"
        );
        let text = json(&["</script><!--", "a&b\u{2028}"]);
        assert!(!text.contains(['<', '>', '&', '\u{2028}']), "{text}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), ["</script><!--", "a&b\u{2028}"]);
    }

    #[test]
    fn bars_stay_within_their_cells() {
        assert!(bar(u64::MAX, 1, 1).contains("width=\"100.0%\""));
        assert!(bar(5, 1, 10).contains("width=\"50.0%\"") && bar(5, 1, 10).contains("width=\"10.0%\""));
        assert!(bar(0, 0, 0).contains("width=\"0.0%\""));
    }
}
