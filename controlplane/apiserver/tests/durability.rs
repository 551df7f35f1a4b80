//! kill -9 of the server: no acknowledged write is lost, nothing is allocated twice afterwards, watches resume.

#![allow(clippy::unwrap_used, reason = "test helpers")]

#[path = "support/server.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod server;

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use k8s_openapi::api::core::v1::Service;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;
use server::ChildServer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_if_child() {
    server::serve_if_child().await;
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Creates Services until the server is gone; remembers which were acknowledged.
async fn create_until_killed(api: Api<Service>, round: usize, worker: usize, done: Arc<Mutex<Vec<String>>>) {
    for at in 0.. {
        let name = format!("s-{round}-{worker}-{at}");
        let service =
            json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let service: Service = serde_json::from_value(service).unwrap();
        match api.create(&PostParams::default(), &service).await {
            Ok(_) => done.lock().unwrap().push(name),
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_is_given_out_twice() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let dir = tempfile::tempdir().unwrap();
    let done = Arc::new(Mutex::new(Vec::new()));
    let mut first_uid = None;
    for round in 0..3 {
        let address = free_address();
        let child = ChildServer::start(dir.path(), address).await;
        let client = server::client(&dir.path().join("admin.kubeconfig")).await;
        let api: Api<Service> = Api::default_namespaced(client);
        let enough = done.lock().unwrap().len() + 60;
        let workers: Vec<_> = (0..8)
            .map(|worker| tokio::spawn(create_until_killed(api.clone(), round, worker, Arc::clone(&done))))
            .collect();
        while done.lock().unwrap().len() < enough {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        child.kill();
        for worker in workers {
            worker.await.unwrap();
        }

        let _child = ChildServer::start(dir.path(), free_address()).await;
        let client = server::client(&dir.path().join("admin.kubeconfig")).await;
        let services =
            Api::<Service>::default_namespaced(client).list(&ListParams::default()).await.unwrap().items;
        let names: BTreeSet<String> =
            services.iter().map(|service| service.metadata.name.clone().unwrap()).collect();
        let lost: Vec<String> =
            done.lock().unwrap().iter().filter(|name| !names.contains(*name)).cloned().collect();
        assert_eq!(lost, Vec::<String>::new());
        let ips: Vec<String> =
            services.iter().filter_map(|service| service.spec.as_ref()?.cluster_ip.clone()).collect();
        let ports: Vec<i32> = services
            .iter()
            .filter_map(|service| service.spec.as_ref()?.ports.as_ref()?[0].node_port)
            .collect();
        assert_eq!(ips.len(), ips.iter().collect::<BTreeSet<_>>().len());
        assert_eq!(ports.len(), ports.iter().collect::<BTreeSet<_>>().len());
        let kubernetes =
            services.iter().find(|service| service.metadata.name.as_deref() == Some("kubernetes")).unwrap();
        let uid = kubernetes.metadata.uid.clone();
        assert_eq!(*first_uid.get_or_insert(uid.clone()), uid);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _child = ChildServer::start(dir.path(), free_address()).await;
    let config = server::config(dir.path(), TcpListener::bind("127.0.0.1:0").unwrap());
    let refused = seaway_apiserver::run(config, tokio_util::sync::CancellationToken::new()).await;
    let error = refused.unwrap_err();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("in use by another server"), "{error}: {why}");
}
