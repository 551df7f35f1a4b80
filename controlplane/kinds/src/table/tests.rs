//! What `kubectl get -o wide` prints, as snapshots.
