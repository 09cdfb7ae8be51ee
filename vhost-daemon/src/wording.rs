//! What errors have in common in how they are said.
//!
//! Owns: one line for an error and its causes, and which word a misspelt one is like. Does not own: any error.

/// An error and its causes in one line; a cause that the text before it names already is not said twice.
#[cfg(feature = "daemon")]
#[must_use]
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().lines().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

/// Whether one word is the other with a slip of the pen: up to two letters apart, less in short ones.
#[must_use]
pub fn is_like(word: &str, other: &str) -> bool {
    let near = match word.len() {
        0..4 => 0,
        4..7 => 1,
        _ => 2,
    };
    // A file of many long keys is compared with all there are: most are not worth a closer look.
    word == other || lengths_apart(word, other) <= near && letters_apart(word, other) <= near
}

fn lengths_apart(a: &str, b: &str) -> usize {
    a.chars().count().abs_diff(b.chars().count())
}

/// Letters to put in, take out, change or swap with their neighbour to make one word of the other.
fn letters_apart(a: &str, b: &str) -> usize {
    // What is long is not a slip.
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    let at = |rows: &[Vec<usize>], i: usize, j: usize| {
        rows.get(i).and_then(|row| row.get(j)).copied().unwrap_or(usize::MAX / 2)
    };
    for (i, x) in a.iter().enumerate() {
        rows.push(vec![i + 1]);
        for (j, y) in b.iter().enumerate() {
            let mut least = (at(&rows, i, j + 1) + 1).min(at(&rows, i + 1, j) + 1);
            least = least.min(at(&rows, i, j) + usize::from(x != y));
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                least = least.min(at(&rows, i - 1, j - 1) + 1);
            }
            if let Some(row) = rows.last_mut() {
                row.push(least);
            }
        }
    }
    at(&rows, a.len(), b.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "daemon")]
    #[test]
    fn causes_are_said_once() {
        use anyhow::Context;
        let error =
            Err::<(), _>(std::io::Error::other("gone")).context("a: gone").context("b\nc").unwrap_err();
        assert_eq!(one_line(&error), "b c: a: gone");
    }

    #[test]
    fn slips_of_the_pen() {
        for (word, other, like) in [
            ("root", "roots", true),
            ("root", "rot", true),
            ("root", "rust", false),
            ("queues", "quues", true),
            ("work_dir", "work_dri", true),
            ("digest_validate", "digest_valdate", true),
            ("dir", "dirs", false),
            ("", "", true),
        ] {
            assert_eq!(is_like(word, other), like, "{word} {other}");
        }
    }
}
