//! What each kind gets and what it refuses, as tables.
