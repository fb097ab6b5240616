//! The only room that knows sled: views of the log, disposable.
