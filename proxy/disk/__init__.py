"""What is on disk: key files, trusted roots, the local CA, the files that come with Overcoat."""
