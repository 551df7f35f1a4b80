//! The form of a Corefile: lines of words, and blocks in braces.

/// Where something stands: in which of the files that were read, and in which line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: usize,
    pub(super) line: usize,
}

impl Place {
    /// The file's beginning.
    pub(super) const START: Self = Self { file: 0, line: 1 };
}

/// One line of a block: its words, and the lines of the block that it opens.
#[derive(Debug)]
pub(super) struct Directive {
    pub(super) line: Place,
    pub(super) words: Vec<String>,
    pub(super) body: Vec<Directive>,
    /// There is such a block, be it empty.
    pub(super) opens: bool,
}

impl Directive {
    fn new(line: Place) -> Self {
        Self { line, words: Vec::new(), body: Vec::new(), opens: false }
    }

    pub(super) fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    pub(super) fn args(&self) -> Vec<&str> {
        self.words.iter().skip(1).map(String::as_str).collect()
    }
}

/// A word with its place, or the end of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(Place, String),
    End,
}

impl Token {
    /// Whether it is this word.
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(_, text) if text == word)
    }
}

/// The words of a text. In quotes there may be blanks, ends of lines, and quotes behind backslashes.
pub(super) fn tokens(text: &str, file: usize) -> Vec<Token> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let place = Place { file, line };
        let (word, after) = match first {
            '\n' => {
                found.push(Token::End);
                line += 1;
                rest = &rest[1..];
                continue;
            }
            '#' => {
                rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
                continue;
            }
            blank if blank.is_whitespace() => {
                rest = &rest[blank.len_utf8()..];
                continue;
            }
            '"' => quoted(&rest[1..]),
            _ => {
                let (word, after) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
                (word.to_owned(), after)
            }
        };
        line += word.matches('\n').count();
        found.push(Token::Word(place, from_environment(word)));
        rest = after;
    }
    found.push(Token::End);
    found
}

/// The word up to the closing quote, and what stands behind that. Only a quote is written with a backslash.
fn quoted(text: &str) -> (String, &str) {
    let mut end = 0;
    while let Some(at) = text[end..].find('"') {
        end += at;
        if !text[..end].ends_with('\\') {
            return (text[..end].replace("\\\"", "\""), &text[end + 1..]);
        }
        end += 1;
    }
    (text.replace("\\\"", "\""), "")
}

/// A word with the values of the environment's variables that it names: `{$NAME}`, `{%NAME%}`.
fn from_environment(word: String) -> String {
    let mut word = word;
    for (open, close) in [("{$", "}"), ("{%", "%}")] {
        while let Some(start) = word.find(open)
            && let Some(length) = word[start + open.len()..].find(close)
        {
            let name = &word[start + open.len()..][..length];
            let value = std::env::var(name).unwrap_or_default();
            // A value that names another one is not looked into.
            let value = value.replace(open, "");
            word.replace_range(start..start + open.len() + length + close.len(), &value);
        }
    }
    word
}

type Tokens = std::iter::Peekable<std::vec::IntoIter<Token>>;

/// A file's blocks.
pub(super) fn blocks(tokens: Vec<Token>, problems: &mut Vec<(Place, String)>) -> Vec<Directive> {
    block(&mut tokens.into_iter().peekable(), problems, true)
}

/// The lines up to the closing brace, or to the end of the file.
fn block(tokens: &mut Tokens, problems: &mut Vec<(Place, String)>, top: bool) -> Vec<Directive> {
    let mut directives = Vec::new();
    let mut open: Option<Directive> = None;
    let mut last = Place::START;
    while let Some(token) = tokens.next() {
        let Token::Word(line, word) = token else {
            // Zones go on in the next line.
            let goes_on = |open: &Directive| top && open.words.last().is_some_and(|word| word.ends_with(','));
            if !open.as_ref().is_some_and(goes_on) {
                directives.extend(open.take());
            }
            continue;
        };
        last = line;
        match word.as_str() {
            "{" => {
                let mut directive = open.take().unwrap_or_else(|| Directive::new(line));
                directive.body = block(tokens, problems, false);
                directive.opens = true;
                directives.push(directive);
            }
            "}" if top => problems.push((line, "a brace closes that none opened".to_owned())),
            "}" => {
                directives.extend(open.take());
                return directives;
            }
            _ => open.get_or_insert_with(|| Directive::new(line)).words.push(word),
        }
    }
    directives.extend(open);
    if !top {
        problems.push((last, "a brace is missing".to_owned()));
    }
    directives
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        let word = |token| {
            if let Token::Word(place, word) = token { Some(format!("{}:{word}", place.line)) } else { None }
        };
        tokens(text, 0).into_iter().filter_map(word).collect()
    }

    #[test]
    fn words_and_quotes() {
        assert_eq!(
            words("a b#c # d\n\t\"e f\" \"g\\\"h\" \"i\\.j\"\r\nk"),
            ["1:a", "1:b#c", "2:e f", "2:g\"h", "2:i\\.j", "3:k"]
        );
        assert_eq!(words("\"a\nb\" c\n\"never closed"), ["1:a\nb", "2:c", "3:never closed"]);
        assert_eq!(words("\"\" x"), ["1:", "1:x"]);
    }

    #[test]
    fn values_of_the_environment() {
        let cargo = std::env::var("CARGO_PKG_NAME").unwrap();
        assert_eq!(
            words("a{$CARGO_PKG_NAME}b {%CARGO_PKG_NAME%} {$NOT_THERE_AT_ALL}x {$open"),
            [format!("1:a{cargo}b"), format!("1:{cargo}"), "1:x".to_owned(), "1:{$open".to_owned()]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "[a{}$%\\[\\]()#\"\\\\ \n,*é]{0,60}") {
            blocks(tokens(&text, 0), &mut Vec::new());
        }
    }
}
