//! The difference of two texts, as `diff -u` shows it.

use std::fmt::Write;

/// Unchanged lines around each change.
const CONTEXT: usize = 3;

enum Line<'a> {
    Same(&'a str),
    Removed(&'a str),
    Added(&'a str),
}

/// The changes from one text to another; empty if there are none.
pub(crate) fn unified(name: &str, old: Option<&str>, new: Option<&str>) -> String {
    let lines = compare(&split(old), &split(new));
    let changed: Vec<usize> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !matches!(line, Line::Same(_)))
        .map(|(at, _)| at)
        .collect();
    let Some(&first) = changed.first() else { return String::new() };
    let side = |text: Option<&str>| if text.is_some() { name.to_owned() } else { "/dev/null".into() };
    let mut text = format!("--- {}\n+++ {}\n", side(old), side(new));
    let mut start = first.saturating_sub(CONTEXT);
    let mut end = first;
    for at in changed {
        if at > end + 2 * CONTEXT {
            hunk(&mut text, &lines, start, end + CONTEXT + 1);
            start = at - CONTEXT;
        }
        end = at;
    }
    hunk(&mut text, &lines, start, (end + CONTEXT + 1).min(lines.len()));
    text
}

fn split(text: Option<&str>) -> Vec<&str> {
    text.unwrap_or_default().lines().collect()
}

fn hunk(text: &mut String, lines: &[Line], start: usize, end: usize) {
    let count = |lines: &[Line], added: bool| {
        let counts = |line: &&Line| match line {
            Line::Same(_) => true,
            Line::Added(_) => added,
            Line::Removed(_) => !added,
        };
        lines.iter().filter(counts).count()
    };
    let (before, hunk) = (&lines[..start], &lines[start..end]);
    let range = |added| {
        let length = count(hunk, added);
        // An empty range is after the line that it names.
        format!("{},{length}", count(before, added) + usize::from(length > 0))
    };
    let _ = writeln!(text, "@@ -{} +{} @@", range(false), range(true));
    for line in hunk {
        let (mark, line) = match line {
            Line::Same(line) => (' ', line),
            Line::Removed(line) => ('-', line),
            Line::Added(line) => ('+', line),
        };
        let _ = writeln!(text, "{mark}{line}");
    }
}

/// By a longest common subsequence, between the lines that both begin and end with.
fn compare<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let begin = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (&old[begin..], &new[begin..]);
    let end = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old_middle, new_middle) = (&old_rest[..old_rest.len() - end], &new_rest[..new_rest.len() - end]);

    let width = new_middle.len() + 1;
    let mut longest = vec![0_u32; (old_middle.len() + 1) * width];
    for (row, old) in old_middle.iter().enumerate().rev() {
        for (column, new) in new_middle.iter().enumerate().rev() {
            longest[row * width + column] = if old == new {
                longest[(row + 1) * width + column + 1] + 1
            } else {
                longest[(row + 1) * width + column].max(longest[row * width + column + 1])
            };
        }
    }

    let mut lines: Vec<Line> = old[..begin].iter().map(|line| Line::Same(line)).collect();
    let (mut row, mut column) = (0, 0);
    while row < old_middle.len() || column < new_middle.len() {
        match (old_middle.get(row), new_middle.get(column)) {
            (Some(old), Some(new)) if old == new => {
                lines.push(Line::Same(old));
                (row, column) = (row + 1, column + 1);
            }
            (Some(old), new)
                if new.is_none()
                    || longest[(row + 1) * width + column] >= longest[row * width + column + 1] =>
            {
                lines.push(Line::Removed(old));
                row += 1;
            }
            (_, Some(new)) => {
                lines.push(Line::Added(new));
                column += 1;
            }
            // The conditions above leave nothing.
            (_, None) => break,
        }
    }
    lines.extend(old_rest[old_middle.len()..].iter().map(|line| Line::Same(line)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_have_no_difference() {
        assert_eq!(unified("f", Some("a\nb\n"), Some("a\nb\n")), "");
    }

    #[test]
    fn a_new_file_comes_from_nothing() {
        assert_eq!(unified("f", None, Some("a\n")), "--- /dev/null\n+++ f\n@@ -0,0 +1,1 @@\n+a\n");
        assert_eq!(unified("f", Some("a\n"), None), "--- f\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-a\n");
    }

    #[test]
    fn changes_far_apart_are_shown_apart_with_their_surroundings() {
        let old: Vec<String> = (1..=20).map(|line| line.to_string()).collect();
        let mut new = old.clone();
        new[1] = "two".into();
        new.insert(18, "more".into());
        let shown = unified("f", Some(&old.join("\n")), Some(&new.join("\n")));
        assert_eq!(
            shown,
            "--- f\n+++ f\n@@ -1,5 +1,5 @@\n 1\n-2\n+two\n 3\n 4\n 5\n\
             @@ -16,5 +16,6 @@\n 16\n 17\n 18\n+more\n 19\n 20\n"
        );
    }
}
