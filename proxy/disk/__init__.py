"""Files: key files, trusted roots, the local CA's folder, and the data that comes with Overcoat. The policy file's
reader, the engine and the commands call it whenever something is read from or written to disk.

Offers:

- `ca`: CaError, Leaf, LocalCa, data_directory, published_lifetime, published_mandates; the local CA and its folder
- `chains`: SeenChain, read_chains, remember_chains; which keys hosts have shown last
- `issuing`: ca_certificate, private_pem, server_certificate, valid_from; certificates of a CA and of servers
- `keyfiles`: MAX_KEY_FILE_BYTES, KeyFileError, create_file, exclusively, read_key_file, replace_file; files with
  secrets, and their permissions
- `mounts`: is_mounted_by_itself, is_replaced; files that a container runtime mounts one by one
- `packaged`: config_file; files that come with Overcoat
- `preload`: is_preloaded; the browsers' list of hosts that speak https only
- `publishing`: PublishingError, bundle, publish_ca, write_public; what apps trust
- `reading`: MAX_ROOTS_BYTES, NotRegularError, Version, list_folder, noting_files, read_regular, version_of; reads a
  file that may be no regular one or too long, and tells its versions apart
- `rotating`: finish, rotate; another local CA in the place of the one that there is
- `sharing`: Hold, InUse; whether another sidecar uses the data directory
"""
