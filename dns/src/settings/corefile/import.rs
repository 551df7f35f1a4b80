//! What a Corefile takes from elsewhere: `import` of files and of snippets, which stand in the place of the line.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use regex::Regex;

use super::syntax::{Place, Token, tokens};
use crate::settings::Files;

/// As CoreDNS has it: more of them are a file that imports itself.
const IMPORTS_MAX: usize = 10_000;
const DEPTH_MAX: usize = 20;

/// Puts what is imported in its place.
pub(super) struct Importer<'r> {
    read: &'r Files,
    /// What imported files are relative to.
    base: PathBuf,
    snippets: HashMap<String, Vec<Token>>,
    /// All files that were read; the first one is the settings file.
    pub(super) files: Vec<String>,
    count: usize,
    pub(super) problems: Vec<(Place, String)>,
}

impl<'r> Importer<'r> {
    pub(super) fn new(file: &Path, read: &'r Files) -> Self {
        let base = file.parent().unwrap_or(Path::new("")).to_owned();
        let (snippets, files) = (HashMap::new(), vec![file.display().to_string()]);
        Self { read, base, snippets, files, count: 0, problems: Vec::new() }
    }

    /// The words of a file with all that it imports.
    pub(super) fn read(&mut self, text: &str) -> Vec<Token> {
        self.expanded(tokens(text, 0), 0)
    }

    fn expanded(&mut self, tokens: Vec<Token>, depth: usize) -> Vec<Token> {
        let mut out = Vec::with_capacity(tokens.len());
        let mut rest = tokens.into_iter().peekable();
        let (mut nesting, mut begins) = (0_usize, true);
        while let Some(token) = rest.next() {
            let began = std::mem::replace(&mut begins, token == Token::End || token.is("{"));
            match token {
                Token::Word(_, name) if began && nesting == 0 && is_snippet(&name) => {
                    rest.next_if(|next| next.is("{"));
                    self.snippets.insert(name[1..name.len() - 1].to_owned(), body(&mut rest));
                }
                Token::Word(place, word) if began && word == "import" => {
                    let args: Vec<_> =
                        std::iter::from_fn(|| rest.next_if(|next| *next != Token::End)).collect();
                    if let [Token::Word(_, pattern)] = &args[..] {
                        out.extend(self.import(place, pattern, depth));
                    } else {
                        self.problems.push((place, "\"import\" wants one file or snippet".to_owned()));
                    }
                }
                token => {
                    nesting += usize::from(token.is("{"));
                    nesting = nesting.saturating_sub(usize::from(token.is("}")));
                    out.push(token);
                }
            }
        }
        out
    }

    /// What stands behind a pattern.
    fn import(&mut self, place: Place, pattern: &str, depth: usize) -> Vec<Token> {
        self.count += 1;
        if depth >= DEPTH_MAX || self.count > IMPORTS_MAX {
            self.problems.push((place, format!("{pattern:?} is imported again and again")));
            // Once is enough.
            self.count = IMPORTS_MAX;
            return Vec::new();
        }
        if let Some(snippet) = self.snippets.get(pattern).cloned() {
            return self.expanded(snippet, depth + 1);
        }
        let mut all = Vec::new();
        for path in self.matching(pattern) {
            match self.read.read(&path) {
                Ok(text) => {
                    self.files.push(path.display().to_string());
                    let read = tokens(&text, self.files.len() - 1);
                    all.extend(self.expanded(read, depth + 1));
                }
                Err(error) => {
                    self.problems.push((place, format!("cannot import {}: {error}", path.display())));
                }
            }
        }
        all
    }

    /// The files that a pattern means, in order: none or several where it has wildcards.
    fn matching(&self, pattern: &str) -> Vec<PathBuf> {
        let whole = self.base.join(pattern);
        if !pattern.contains(['*', '?', '[']) {
            return vec![whole];
        }
        let mut found = vec![PathBuf::new()];
        for component in whole.components() {
            let Component::Normal(name) = component else {
                for path in &mut found {
                    path.push(component);
                }
                continue;
            };
            let name = name.to_string_lossy();
            found = found.into_iter().flat_map(|path| entries(path, &name, self.read)).collect();
        }
        found.retain(|path| path.is_file());
        found.sort();
        found
    }
}

/// What is at `path` by a name that may have wildcards.
fn entries(path: PathBuf, name: &str, read: &Files) -> Vec<PathBuf> {
    if !name.contains(['*', '?', '[']) {
        return vec![path.join(name)];
    }
    let expression = regex::escape(name)
        .replace("\\*", ".*")
        .replace("\\?", ".")
        .replace("\\[", "[")
        .replace("\\]", "]")
        .replace("\\-", "-");
    let Ok(expression) = Regex::new(&format!("^{expression}$")) else { return Vec::new() };
    let here = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
    read.note(here);
    let names = std::fs::read_dir(here).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| expression.is_match(&name.to_string_lossy())).map(|name| path.join(name)).collect()
}

/// `(name)`
fn is_snippet(word: &str) -> bool {
    word.len() > 2 && word.starts_with('(') && word.ends_with(')')
}

/// The words up to the brace that closes what has just been opened.
fn body(rest: &mut impl Iterator<Item = Token>) -> Vec<Token> {
    let mut nesting = 0_usize;
    let inner = rest.take_while(|token| {
        nesting += usize::from(token.is("{"));
        let ends = token.is("}") && nesting == 0;
        nesting -= usize::from(token.is("}") && !ends);
        !ends
    });
    inner.collect()
}
