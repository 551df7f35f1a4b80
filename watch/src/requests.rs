//! What requests to the API server take, seen at the client, for whoever counts them.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kube::client::{Body, ClientBuilder};
use tower::{Layer, Service};

/// A request that has been answered, as far as headers go, or has failed.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// Whom it was sent to: host and port.
    pub host: &'a str,
    /// The status code; `None`: there was no answer.
    pub code: Option<u16>,
    /// The time from the request to the answer's headers.
    pub took: Duration,
}

/// Is told of every request.
pub type OnAnswered = Arc<dyn Fn(Answered<'_>) + Send + Sync>;

/// A client that tells `on_answered` of its requests.
///
/// # Errors
/// When the configuration cannot be used.
pub fn observed_client(config: kube::Config, on_answered: OnAnswered) -> Result<kube::Client, kube::Error> {
    let host = config.cluster_url.authority().map_or("", |authority| authority.as_str()).into();
    Ok(ClientBuilder::try_from(config)?.with_layer(&Observe { host, on_answered }).build())
}

struct Observe {
    host: Arc<str>,
    on_answered: OnAnswered,
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, host: Arc::clone(&self.host), on_answered: Arc::clone(&self.on_answered) }
    }
}

struct Observed<S> {
    inner: S,
    host: Arc<str>,
    on_answered: OnAnswered,
}

impl<S, B> Service<http::Request<Body>> for Observed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>>,
    S::Future: Send + 'static,
    B: 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (host, on_answered) = (Arc::clone(&self.host), Arc::clone(&self.on_answered));
        let (method, began) = (request.method().clone(), Instant::now());
        let tell = move |code| {
            let (method, host, took) = (method.as_str(), &*host, began.elapsed());
            on_answered(Answered { method, host, code, took });
        };
        let told = self.inner.call(request).map(move |ended| {
            tell(ended.as_ref().ok().map(|response| response.status().as_u16()));
            ended
        });
        told.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn answers_and_failures_are_told() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let on_answered: OnAnswered = Arc::new(move |answered| {
            let Answered { method, host, code, .. } = answered;
            tell.lock().unwrap().push((method.to_owned(), host.to_owned(), code));
        });
        let answer = async |request: http::Request<Body>| match request.uri().path() {
            "/broken" => Err(std::io::Error::other("broken")),
            _ => Ok(http::Response::builder().status(404).body(()).unwrap()),
        };
        let mut observed = Observe { host: "api:6443".into(), on_answered }.layer(tower::service_fn(answer));
        let request = |method: &str, path: &str| {
            http::Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
        };
        assert_eq!(observed.call(request("GET", "/missing")).await.unwrap().status(), 404);
        observed.call(request("PATCH", "/broken")).await.unwrap_err();
        let row = |method: &str, code| (method.to_owned(), "api:6443".to_owned(), code);
        assert_eq!(*told.lock().unwrap(), [row("GET", Some(404)), row("PATCH", None)]);
    }
}
