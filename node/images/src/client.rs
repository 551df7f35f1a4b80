//! `seaway/client`: probes the network from inside a pod when asked over HTTP (`/dial`), and keeps up a steady load
//! where told to, with a line every ten seconds, so that the logs show life.

mod dial;
mod load;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::arguments::Arguments;
use crate::echo::listen_tcp;
use crate::identity::Identity;
use crate::process::{ImageError, block_on, say, stop_on_signals};

/// Serves until SIGTERM.
pub(crate) fn run(args: &[String]) -> Result<(), ImageError> {
    let names = ["http-port", "load", "rate", "report-s", "drain-ms"];
    let arguments = Arguments::read(args, &names, &["keep-alive"])?;
    let port = arguments.value("http-port", 8080)?;
    let drain = Duration::from_millis(arguments.value("drain-ms", 5000)?);
    let plan = load::Plan {
        rate_per_s: arguments.value("rate", 1.0)?,
        report: Duration::from_secs(arguments.value("report-s", 10_u64)?.max(1)),
        keep_alive: arguments.value("keep-alive", false)?,
    };
    if !(plan.rate_per_s > 0.0 && plan.rate_per_s <= 10_000.0) {
        let why = format!("{} is not within 0..=10000", plan.rate_per_s);
        return Err(ImageError::Argument { argument: "--rate".to_owned(), why });
    }
    let targets: Vec<String> = arguments.all("load").into_iter().map(str::to_owned).collect();
    block_on(async {
        let terminated = stop_on_signals()?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        if let Some((listener, address)) = listen_tcp(port)? {
            say(&format!("{} listens on http {address}", Identity::of_this_process().pod));
            let service = Arc::new(dial::Dial::default());
            tasks.spawn(crate::http::serve(listener, service, tasks.clone(), stop.clone()));
        }
        for target in targets {
            tasks.spawn(load::run(plan, target, stop.clone()));
        }
        terminated.cancelled().await;
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(drain, tasks.wait()).await.is_err() {
            say(&format!("{} probes are still under way after {drain:?}: leaving", tasks.len()));
        }
        Ok(())
    })
}
