//! The rows of a check: counted, timed, and printed as they come, for people or as JSON.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use crate::telemetry::{say, say_err};

#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    ok: bool,
    detail: &'a str,
    ms: u128,
}

/// Collects rows.
#[derive(Debug)]
pub struct Report {
    json: bool,
    only: Option<String>,
    good: usize,
    failed: Vec<String>,
    /// Rows that `only` named.
    chosen: usize,
}

impl Report {
    /// A report without rows yet.
    pub fn new(json: bool, only: Option<String>) -> Self {
        Self { json, only, good: 0, failed: Vec::new(), chosen: 0 }
    }

    /// Tries one row: `Ok` holds what was seen, an error says why it does not hold.
    pub async fn row(&mut self, name: &str, tried: impl Future<Output = Result<String>>) {
        if self.only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
            self.chosen += 1;
            self.always(name, tried).await;
        }
    }

    /// As [`Report::row`], for what the other rows rely on: tried whatever is filtered for.
    pub async fn always(&mut self, name: &str, tried: impl Future<Output = Result<String>>) {
        let since = Instant::now();
        let (ok, detail) = match tried.await {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        let row = Row { name, ok, detail: &detail, ms: since.elapsed().as_millis() };
        if ok {
            self.good += 1;
        } else {
            self.failed.push(name.to_owned());
        }
        say(&self.shown(&row));
    }

    fn shown(&self, row: &Row<'_>) -> String {
        if self.json {
            serde_json::to_string(row).unwrap_or_default()
        } else {
            let mark = if row.ok { "ok  " } else { "FAIL" };
            format!("{mark} {:<52} {:>6} ms  {}", row.name, row.ms, row.detail)
        }
    }

    /// Sums up. Nothing tried is a failure too.
    pub fn finish(self) -> ExitCode {
        if let Some(only) = self.only.as_ref().filter(|_| self.chosen == 0) {
            say_err(&format!("no row's name contains {only:?}"));
            return ExitCode::FAILURE;
        }
        if !self.json {
            say(&format!("\n{} ok, {} failed", self.good, self.failed.len()));
            for name in &self.failed {
                say(&format!("  failed: {name}"));
            }
        }
        if self.failed.is_empty() && self.good > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
