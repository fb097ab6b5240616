//! The codec shared by broker and client: frames, handshake, stable codes.
