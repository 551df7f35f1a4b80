//! What every controller gets: the client, the shared informers, the event recorder.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Api, Client, Resource};
use seaway_client::{Informer, Recorder, Store};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::ControllersConfig;
use crate::pod;

/// What every controller gets.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) config: ControllersConfig,
    pub(crate) recorder: Recorder,
    pub(crate) caches: Caches,
    pub(crate) shutdown: CancellationToken,
}

impl Context {
    /// The API of one namespace.
    pub(crate) fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The API of a kind of the whole cluster.
    pub(crate) fn cluster<K>(&self) -> Api<K>
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }
}

type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One informer per kind, made when the first controller asks for it, shared by all.
pub(crate) struct Caches {
    client: Client,
    shutdown: CancellationToken,
    runs: Mutex<Vec<Run>>,
    pods: OnceLock<Arc<Informer<Pod>>>,
    nodes: OnceLock<Arc<Informer<Node>>>,
    services: OnceLock<Arc<Informer<Service>>>,
    endpoint_slices: OnceLock<Arc<Informer<EndpointSlice>>>,
    endpoints: OnceLock<Arc<Informer<Endpoints>>>,
    deployments: OnceLock<Arc<Informer<Deployment>>>,
    replica_sets: OnceLock<Arc<Informer<ReplicaSet>>>,
    daemon_sets: OnceLock<Arc<Informer<DaemonSet>>>,
    namespaces: OnceLock<Arc<Informer<Namespace>>>,
    leases: OnceLock<Arc<Informer<Lease>>>,
    service_accounts: OnceLock<Arc<Informer<ServiceAccount>>>,
    root_cas: OnceLock<Arc<Informer<ConfigMap>>>,
}

macro_rules! informer {
    ($(#[$doc:meta])* $name:ident: $kind:ty, $store:expr) => {
        $(#[$doc])*
        pub(crate) fn $name(&self) -> Arc<Informer<$kind>> {
            Arc::clone(self.$name.get_or_init(|| {
                self.register(Informer::new(Api::all(self.client.clone()), $store))
            }))
        }
    };
}

impl Caches {
    pub(crate) fn new(client: Client, shutdown: CancellationToken) -> Self {
        Self {
            client,
            shutdown,
            runs: Mutex::default(),
            pods: OnceLock::new(),
            nodes: OnceLock::new(),
            services: OnceLock::new(),
            endpoint_slices: OnceLock::new(),
            endpoints: OnceLock::new(),
            deployments: OnceLock::new(),
            replica_sets: OnceLock::new(),
            daemon_sets: OnceLock::new(),
            namespaces: OnceLock::new(),
            leases: OnceLock::new(),
            service_accounts: OnceLock::new(),
            root_cas: OnceLock::new(),
        }
    }

    informer!(
        /// Pods, indexed by node and by owner (see [`pod::index`]).
        pods: Pod, Store::with_index(pod::index)
    );
    informer!(nodes: Node, Store::default());
    informer!(services: Service, Store::default());
    informer!(
        /// EndpointSlices, indexed by their Service.
        endpoint_slices: EndpointSlice, Store::with_index(crate::endpointslice::index)
    );
    informer!(endpoints: Endpoints, Store::default());
    informer!(deployments: Deployment, Store::default());
    informer!(
        /// ReplicaSets, indexed by owner.
        replica_sets: ReplicaSet, Store::with_index(|set| crate::owner::index(&set.metadata))
    );
    informer!(daemon_sets: DaemonSet, Store::default());
    informer!(namespaces: Namespace, Store::default());
    informer!(leases: Lease, Store::default());
    informer!(service_accounts: ServiceAccount, Store::default());

    /// The ConfigMaps `kube-root-ca.crt`.
    pub(crate) fn root_cas(&self) -> Arc<Informer<ConfigMap>> {
        Arc::clone(self.root_cas.get_or_init(|| {
            let informer = Informer::new(Api::all(self.client.clone()), Store::default());
            self.register(informer.fields(format!("metadata.name={}", crate::root_ca::NAME)))
        }))
    }

    /// Takes an informer of any other kind among those that [`Caches::run`] starts.
    pub(crate) fn register<K>(&self, informer: Informer<K>) -> Arc<Informer<K>>
    where
        K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        let informer = Arc::new(informer);
        let run = Arc::clone(&informer).run(self.shutdown.clone());
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(run));
        informer
    }

    /// Starts the informers that were asked for: call it when all handlers are registered.
    pub(crate) fn run(&self, tasks: &mut JoinSet<()>) {
        for run in self.runs.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            tasks.spawn(run);
        }
    }
}
