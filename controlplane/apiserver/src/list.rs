//! GET and LIST. A list that nothing has to look into is sent as the very bytes of the store.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use jiff::Timestamp;
use seaway_kinds::{
    ApiError, Kind,
    negotiate::{Encoding, Output},
    partial,
    table::{self, TableOptions},
};
use seaway_store::{Entry, ListOptions, Page, Store, StoreError};
use serde_json::{Value, json};

use crate::{
    api::{Api, Call},
    objects,
    query::{At, Continue, ListQuery, Selection},
    response::{self, ApiResult},
};

/// How many entries a list with a selector looks at in one go.
const SCAN: usize = 2048;

/// The entry that the path names.
pub(crate) async fn entry(api: &Api, kind: &Kind, key: &str, name: &str) -> Result<Arc<Entry>, ApiError> {
    let found = api.store.get(key).await.map_err(|error| objects::store_error(kind, name, error))?;
    found.ok_or_else(|| ApiError::not_found(kind, name))
}

/// GET of one object.
pub(crate) async fn get(call: &Call<'_>) -> ApiResult {
    let (output, encoding) = call.negotiate()?;
    if let Some(version) = call.query.number::<u64>("resourceVersion")? {
        reached(call.api, version)?;
    }
    let entry = entry(call.api, call.kind, &call.key(), call.name()).await?;
    one(call, output, encoding, 200, &entry.value)
}

/// One object in the representation that was asked for.
pub(crate) fn one(
    call: &Call<'_>,
    output: Output,
    encoding: Encoding,
    code: u16,
    value: &Bytes,
) -> ApiResult {
    if output == Output::Object {
        return response::json(code, encoding, objects::shown_bytes(call.kind, value)?);
    }
    let object = objects::shown(call.kind, value)?;
    value_as(call, output, encoding, code, &object)
}

/// The same for an object that is not stored (a dry run).
pub(crate) fn value_as(
    call: &Call<'_>,
    output: Output,
    encoding: Encoding,
    code: u16,
    object: &Value,
) -> ApiResult {
    let shown = match output {
        Output::Object => return response::value(code, encoding, object),
        Output::Metadata(version) => partial::metadata(object, version),
        Output::Table(version) => {
            let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            table::render(call.kind, [object], metadata, &table_options(call, version)?)
        }
    };
    response::value(code, encoding, &shown)
}

/// How a table is made for this request.
pub(crate) fn table_options(call: &Call<'_>, version: &'static str) -> Result<TableOptions, ApiError> {
    Ok(TableOptions {
        version,
        include: call.query.include_object()?,
        now: Timestamp::now(),
        omit_columns: false,
    })
}

/// Fails when the store has not reached this version.
pub(crate) fn reached(api: &Api, version: u64) -> Result<(), ApiError> {
    let current = api.store.revision();
    if version > current {
        return Err(ApiError::too_large(version, current));
    }
    Ok(())
}

/// What a list found.
pub(crate) struct Listed {
    pub(crate) revision: u64,
    pub(crate) entries: Vec<Arc<Entry>>,
    next: Option<Continue>,
    remaining: Option<usize>,
}

impl Listed {
    fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(next) = &self.next {
            metadata["continue"] = next.token().into();
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        metadata
    }
}

/// LIST.
pub(crate) async fn list(call: &Call<'_>) -> ApiResult {
    let (output, encoding) = call.negotiate()?;
    let query = ListQuery::parse(call.kind, call.query)?;
    let selection = Selection::parse(call.kind, call.query)?;
    let listed = select(call, &query, &selection).await?;
    let metadata = listed.metadata();
    let shown = |entry: &Arc<Entry>| objects::shown(call.kind, &entry.value);
    let content = match output {
        Output::Object => {
            let items = listed.entries.iter().map(|entry| objects::shown_bytes(call.kind, &entry.value));
            list_of(&call.kind.kind, &call.kind.api_version(), &metadata, items)?
        }
        Output::Metadata(version) => {
            // One at a time: a parsed object takes many times the memory of its text.
            let items =
                listed.entries.iter().map(|entry| json_bytes(&partial::metadata(&shown(entry)?, version)));
            list_of(partial::KIND, &partial::api_version(version), &metadata, items)?
        }
        Output::Table(version) => {
            let objects: Vec<Value> = listed.entries.iter().map(shown).collect::<Result<_, _>>()?;
            let table = table::render(call.kind, &objects, metadata, &table_options(call, version)?);
            return response::value(200, encoding, &table);
        }
    };
    response::json(200, encoding, content)
}

/// A value as JSON.
pub(crate) fn json_bytes(value: &Value) -> Result<Bytes, ApiError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(ApiError::internal)
}

/// The list object around items that are JSON already.
pub(crate) fn list_of(
    kind: &str,
    api_version: &str,
    metadata: &Value,
    items: impl Iterator<Item = Result<Bytes, ApiError>>,
) -> Result<Bytes, ApiError> {
    let head =
        format!(r#"{{"kind":"{kind}List","apiVersion":"{api_version}","metadata":{metadata},"items":["#);
    let mut bytes = BytesMut::from(head.as_bytes());
    for (at, item) in items.enumerate() {
        if at > 0 {
            bytes.put_u8(b',');
        }
        bytes.put(item?);
    }
    bytes.put(&b"]}"[..]);
    Ok(bytes.freeze())
}

/// The wanted entries under the path.
pub(crate) async fn select(
    call: &Call<'_>,
    query: &ListQuery,
    selection: &Selection,
) -> Result<Listed, ApiError> {
    let prefix = objects::prefix(call.kind, call.namespace());
    let revision = match query.at {
        At::Now => None,
        At::NotOlderThan(version) => {
            reached(call.api, version)?;
            None
        }
        At::Exact(version) => Some(version),
    };
    let mut options = ListOptions {
        revision,
        after: query.from.as_ref().map(|from| from.after.clone()),
        limit: query.limit,
    };
    if selection.is_everything() {
        let page = page(call, &prefix, options, query).await?;
        return Ok(listed(page.revision, page.entries, query.limit, page.remaining, true));
    }
    let mut wanted = Vec::new();
    // One more than the limit tells whether there is a next page.
    let enough = if query.limit == 0 { usize::MAX } else { query.limit + 1 };
    options.limit = if query.limit == 0 { 0 } else { SCAN };
    loop {
        let page = page(call, &prefix, options.clone(), query).await?;
        let last = page.entries.last().map(|entry| entry.key.to_string());
        for entry in page.entries {
            if wanted.len() < enough && selection.matches(&objects::shown(call.kind, &entry.value)?) {
                wanted.push(entry);
            }
        }
        if page.remaining == 0 || wanted.len() >= enough {
            let more = wanted.len().saturating_sub(query.limit);
            if query.limit > 0 {
                wanted.truncate(query.limit);
            }
            return Ok(listed(page.revision, wanted, query.limit, more, false));
        }
        (options.revision, options.after) = (Some(page.revision), last);
    }
}

fn listed(revision: u64, entries: Vec<Arc<Entry>>, limit: usize, more: usize, counted: bool) -> Listed {
    let next = entries.last().filter(|_| limit > 0 && more > 0).map(|last| Continue {
        rv: i64::try_from(revision).unwrap_or(i64::MAX),
        after: last.key.to_string(),
    });
    let remaining = next.as_ref().filter(|_| counted).map(|_| more);
    Listed { revision, entries, next, remaining }
}

async fn page(
    call: &Call<'_>,
    prefix: &str,
    options: ListOptions,
    query: &ListQuery,
) -> Result<Page, ApiError> {
    let page = call.api.store.list(prefix, options).await;
    page.map_err(|error| match (&error, &query.from) {
        (StoreError::Compacted { .. }, Some(from)) => expired_token(from),
        _ => objects::store_error(call.kind, "", error),
    })
}

/// The answer to a page asked for too late, with a token for going on inconsistently.
fn expired_token(from: &Continue) -> ApiError {
    let next = Continue { rv: -1, after: from.after.clone() };
    let mut error = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    error.details = Some(json!({"continue": next.token()}));
    error
}
