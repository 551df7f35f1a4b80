//! The form of a Corefile: lines of words, and blocks in braces.

use crate::settings::Problem;

/// One line of a block: its words, and the lines of the block that it opens.
#[derive(Debug)]
pub(super) struct Directive {
    pub(super) line: usize,
    pub(super) words: Vec<String>,
    pub(super) body: Vec<Directive>,
}

impl Directive {
    pub(super) fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    pub(super) fn args(&self) -> Vec<&str> {
        self.words.iter().skip(1).map(String::as_str).collect()
    }
}

/// Words with their lines; a line's end is a word as well.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let mut rest = content.trim();
        while !rest.is_empty() && !rest.starts_with('#') {
            let (word, after) = match rest.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
                None => rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len())),
            };
            found.push((line, word.to_owned()));
            rest = after.trim_start();
        }
        found.push((line, "\n".to_owned()));
    }
    found
}

/// A file's blocks.
pub(super) fn blocks(text: &str, problems: &mut Vec<Problem>) -> Vec<Directive> {
    block(&mut words(text).into_iter().peekable(), problems, true)
}

type Words = std::iter::Peekable<std::vec::IntoIter<(usize, String)>>;

/// The lines up to the closing brace, or to the end of the file.
fn block(words: &mut Words, problems: &mut Vec<Problem>, top: bool) -> Vec<Directive> {
    let mut directives = Vec::new();
    let mut open: Option<Directive> = None;
    let mut last = 1;
    while let Some((line, word)) = words.next() {
        last = line;
        match word.as_str() {
            "\n" => directives.extend(open.take()),
            "{" => {
                let mut directive =
                    open.take().unwrap_or(Directive { line, words: Vec::new(), body: Vec::new() });
                directive.body = block(words, problems, false);
                directives.push(directive);
            }
            "}" if top => problems.push(Problem { line, what: "a brace closes that none opened".to_owned() }),
            "}" => {
                directives.extend(open.take());
                return directives;
            }
            _ => open
                .get_or_insert_with(|| Directive { line, words: Vec::new(), body: Vec::new() })
                .words
                .push(word),
        }
    }
    directives.extend(open);
    if !top {
        problems.push(Problem { line: last, what: "a brace is missing".to_owned() });
    }
    directives
}
